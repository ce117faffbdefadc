import pytest
import torch

from ctseg.model import UNet, load_weights, make_model, predict_squares
from ctseg.train import write_torch

SMALL = {"width": 4, "depth": 2, "dropout": (0.3, 0.2)}


def test_the_reference_network_has_31_million_parameters():
    n_parameters = sum(p.numel() for p in UNet().parameters())
    assert n_parameters == pytest.approx(31.04e6, rel=0.001)


@pytest.mark.parametrize("size", [(17, 11), (1, 1), (64, 48), (33, 64)])
def test_logits_have_the_size_of_the_image_whatever_it_is(size):
    assert UNet(4).eval()(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_an_image_is_segmented_alike_alone_and_in_a_batch():
    squares = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8)
    model = UNet(4)
    alone = torch.cat([predict_squares(model, square[None]) for square in squares])
    together = predict_squares(model, squares, batch_size=2)
    assert together.shape == (5, 32, 32) and together.dtype == torch.float32
    assert torch.allclose(alone, together, atol=1e-5)


def test_dropout_is_at_the_bottleneck_and_the_first_decoder_block():
    model = UNet(4)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout2d)] == [0.3, 0.2]
    assert isinstance(model.encoder[4][-1], torch.nn.Dropout2d) and isinstance(model.decoder[0][-1], torch.nn.Dropout2d)


def test_weights_come_back_as_they_were(tmp_path):
    model = make_model(**SMALL)
    write_torch({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    again = make_model(**SMALL, weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    write_torch({"state_dict": UNet(8, 2).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"another architecture: .*decoder.0.0.weight: got \(16, 32, 3, 3\), expected \(8, 16, 3, 3\)"):
        make_model(**SMALL, weights=str(tmp_path / "w.pth"))


def test_a_damaged_or_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_weights(UNet(4), tmp_path / "none.pth")
    (tmp_path / "w.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot read weights .*w.pth"):
        load_weights(UNet(4), tmp_path / "w.pth")


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="unknown encoder 'resnet34'; expected one of unet"):
        make_model("resnet34", **SMALL)
