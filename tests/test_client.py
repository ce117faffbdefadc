"""The way to Kaggle and back, by Kaggle's real client and a server of our own."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import nbformat
import pytest
from kaggle_server import URL

from ctseg.contest import A0
from ctseg.files import write_json
from kaggle_kernel import client

SAVED = {"url": "https://example.org/code/somebody/ctseg-segmentation", "versionNumber": 3}


def test_the_built_kernel_is_pushed(call, server, built):
    server.answers = {"SaveKernel": SAVED}
    status, printed = call(client, "push")
    assert status == 0 and "Kernel version 3 successfully pushed" in printed, printed
    request = server.received["SaveKernel"]
    assert nbformat.reads(request["text"], as_version=4) == built[1]
    assert request["slug"] == built[2]["id"] and request["newTitle"] == built[2]["title"]
    assert request["competitionDataSources"] == [A0.slug] and request["machineShape"] == "NvidiaTeslaT4"
    assert (
        request["isPrivate"]
        and request["enableGpu"]
        and request["enableInternet"]
        and request["kernelType"] == "notebook"
    )


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ({"error": "Maximum weekly GPU quota of 30.00 hours reached."}, "GPU hours are 30 per week"),
        ({"error": "Maximum batch GPU session count of 2 reached."}, "two GPU sessions run at once"),
        (SAVED | {"invalidCompetitionSources": [A0.slug]}, "accept its rules"),
        (SAVED | {"invalidDatasetSources": ["me/weights"]}, "this account may use it"),
        ((404, {"code": 404, "message": "Owner not found: somebody"}), "of the user too (KAGGLE_USERNAME)"),
        ((401, {"code": 401, "message": "Unauthenticated"}), "save Kaggle's API key"),
        ((500, {"code": 500, "message": "Something went wrong"}), "did not succeed"),
    ],
)
def test_a_push_that_kaggle_refuses_fails_with_a_way_out(call, server, built, answer, advice):
    server.answers = {"SaveKernel": answer}
    status, printed = call(client, "push")
    assert status == 1 and advice in printed.splitlines()[-1], printed


def test_a_push_without_a_build_key_or_client_says_what_is_missing(clone, call, built, monkeypatch):
    metadata = clone / "kaggle_kernel" / "kernel-metadata.json"
    metadata.rename(clone / "aside.json")
    status, printed = call(client, "push")
    (clone / "aside.json").rename(metadata)
    assert status == 1 and "make kernel first" in printed
    monkeypatch.delenv("KAGGLE_USERNAME")
    status, printed = call(client, "push")
    assert status == 1 and "save Kaggle's API key" in printed.splitlines()[-1]
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[kaggle]'" in call(client, "push")[1]


@pytest.fixture
def submission(tiny) -> str:
    """A valid submission for the data set `tiny`."""
    return "ID,Mask\ncase_9,1 5\n"


def output_of(submission):
    return {
        "GetKernelSessionStatus": {"status": "COMPLETE"},
        "ListKernelSessionOutput": {
            "files": [{"url": f"{URL}/submission.csv", "fileName": "submission.csv"}],
            "log": "[]",
        },
        "submission.csv": submission.encode(),
    }


def test_a_finished_kernels_output_is_fetched_and_checked(clone, call, server, built, tiny, submission):
    server.answers = output_of(submission)
    status, printed = call(client, "output", "--data", tiny)
    assert status == 0 and printed.endswith("valid; to submit it: make submit RUN=kaggle\n"), printed
    assert (clone / "runs" / "kaggle" / "submission.csv").read_text() == submission
    server.answers = output_of("ID,Mask\ncase_9,1 5000\n")
    status, printed = call(client, "output", "--data", tiny)
    assert status == 1 and "ID case_9: run-length code holds 5000" in printed


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"status": "ERROR", "failureMessage": "out of memory"}, "out of memory"),
        ({"status": "RUNNING"}, "RUNNING"),
    ],
)
def test_a_kernel_that_failed_or_still_runs_has_no_output(clone, call, server, built, tiny, status, message):
    server.answers = {"GetKernelSessionStatus": status}
    status, printed = call(client, "output", "--data", tiny)
    assert status == 1 and message in printed and "did not succeed" in printed


def test_the_run_of_a_kernel_comes_home_and_replaces_none(clone, call, server, built, tiny, submission):
    files = {}
    submission = submission.replace("ID,Mask", "id,rle")
    config = {"run": "home", "preset": "quick", "submission_columns": "id,rle", "slug": "another-contest"}
    files |= dict.fromkeys(("submission.csv", "runs/home/submission.csv"), submission)
    files |= {"runs/home/config.json": json.dumps(config), "runs/home/fold0/oof.npz": "first"}
    server.answers = output_of(submission) | {
        "ListKernelSessionOutput": {
            "files": [{"url": f"{URL}/{name.replace('/', '-')}", "fileName": name} for name in files],
            "log": "[]",
        }
    }
    server.answers |= {name.replace("/", "-"): text.encode() for name, text in files.items()}
    status, printed = call(client, "output", "--data", tiny)
    assert status == 0 and printed.endswith("valid; to submit it: make submit RUN=home\n"), printed
    run_dir = clone / "runs" / "home"
    assert (run_dir / "fold0" / "oof.npz").read_text() == "first"
    upload = {"token": "t", "createUrl": f"{URL}/upload"}
    server.answers |= {
        "StartSubmissionUpload": upload,
        "CreateSubmission": {"message": "Successfully submitted"},
    }
    assert call(client, "submit", "--run", "home", "--data", tiny)[0] == 0
    assert server.received["CreateSubmission"]["competitionName"] == "another-contest"  # the run's own
    for name, text in (("home-2", "second"), ("home-2", "second"), ("home-3", "third")):
        server.answers["runs-home-fold0-oof.npz"] = text.encode()
        status, printed = call(client, "output", "--data", tiny)
        assert status == 0 and printed.endswith(f"valid; to submit it: make submit RUN={name}\n"), printed
        assert (run_dir / "fold0" / "oof.npz").read_text() == "first"  # left as it is
        assert (clone / "runs" / name / "fold0" / "oof.npz").read_text() == text


@pytest.mark.parametrize("first", ["a", "gpu,1"])  # before and after "average" in the alphabet
def test_of_a_kernel_with_several_runs_the_average_is_submitted(
    clone, call, server, built, tiny, submission, first
):
    second, average = f"{first}-width=8", "an-average"
    files = {"submission.csv": submission, f"runs/{average}/submission.csv": submission}
    config = {"preset": "quick", "runs": ""}
    for name in (first, second):
        files[f"runs/{name}/config.json"] = json.dumps(config | {"run": name})
        files |= dict.fromkeys((f"runs/{name}/fold0/oof.npz", f"runs/{name}/fold0/last.pth"), name)
    averaged = config | {"run": average, "runs": f"{first},{second}"}
    files[f"runs/{average}/config.json"] = json.dumps(averaged)
    server.answers = output_of(submission) | {
        "ListKernelSessionOutput": {
            "files": [{"url": f"{URL}/{name.replace('/', '-')}", "fileName": name} for name in files],
            "log": "[]",
        }
    }
    server.answers |= {name.replace("/", "-"): text.encode() for name, text in files.items()}
    shutil.rmtree(clone / "runs", ignore_errors=True)
    begun = clone / "runs" / "gpu" / "config.json"  # one of ours, whose name is in that of the kernel's
    write_json({}, begun)
    for name in ("", "-2", "-2"):  # the third time the same as the second
        status, printed = call(client, "output", "--data", tiny)
        assert status == 0 and printed.endswith(f"submit it: make submit RUN={average}{name}\n"), printed
        kept = json.loads((clone / "runs" / f"{average}{name}" / "config.json").read_text())
        assert kept["runs"] == f"{first},{second}{name}"
        # Another kernel with another second run and another submission.
        server.answers[f"runs-{second}-fold0-oof.npz"] = b"another"
        for place in ("", f"runs-{average}-"):
            server.answers[f"{place}submission.csv"] = b"ID,Mask\ncase_9,1 4\n"
    assert (clone / "runs" / average / "submission.csv").read_text() == submission
    assert (clone / "runs" / f"{average}-2" / "submission.csv").read_text() != submission


def test_an_output_without_a_submission_replaces_none(clone, call, server, built, tiny, submission):
    server.answers = output_of(submission)
    assert call(client, "output", "--data", tiny)[0] == 0
    server.answers["ListKernelSessionOutput"] = {"files": [], "log": "[]"}
    status, printed = call(client, "output", "--data", tiny)
    assert status == 1 and "the kernel made no submission; its runs are in " in printed
    assert (clone / "runs" / "kaggle" / "submission.csv").read_text() == submission


def test_a_contest_of_notebooks_gets_the_version_that_was_pushed_last(clone, call, server, built):
    arguments = ("submit", "--run", "none", "-p", "notebooks_only", "True", "-p", "slug", "hidden-contest")
    (clone / "kaggle_kernel" / "pushed.json").unlink(missing_ok=True)
    status, printed = call(client, *arguments)
    assert status == 1 and "none was pushed from here; make push first" in printed
    server.answers = {
        "SaveKernel": SAVED,
        "GetKernelSessionStatus": {"status": "COMPLETE"},
        "CreateCodeSubmission": {"message": "Successfully submitted to the contest"},
    }
    call(client, "push")
    status, printed = call(client, *arguments)
    assert status == 0 and "takes notebooks only: submitting version 3 of somebody/ctseg-seg" in printed, (
        printed
    )
    sent = server.received["CreateCodeSubmission"]
    assert (sent["competitionName"], sent["fileName"]) == (A0.slug, "submission.csv")  # the kernel's own
    assert (sent["kernelOwner"], sent["kernelSlug"]) == ("somebody", "ctseg-segmentation")
    assert sent["kernelVersion"] == 3
    metadata = clone / "kaggle_kernel" / "kernel-metadata.json"
    built_last = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(built_last | {"id": "somebody/another"}))  # after the push
    call(client, "output")
    metadata.write_text(json.dumps(built_last))
    assert server.received["GetKernelSessionStatus"]["kernelSlug"] == "ctseg-segmentation"
    server.answers["GetKernelSessionStatus"] = {"status": "RUNNING"}
    assert call(client, *arguments)[0] == 1


def test_a_contest_that_takes_no_files_is_said_to_take_kernels(clone, call, server, tiny, submission):
    path = clone / "runs" / "file" / "submission.csv"
    path.parent.mkdir(parents=True)
    path.write_text(submission)
    message = "Submission not allowed: This competition only accepts Submissions from Notebooks."
    server.answers = {"StartSubmissionUpload": (400, {"code": 400, "message": message})}
    status, printed = call(client, "submit", "--run", "file", "--data", tiny)
    assert status == 1 and "make submit ARGS='-p notebooks_only True'" in printed.splitlines()[-1], printed


def test_a_submission_is_checked_then_submitted_with_run_and_commit(clone, call, server, tiny, submission):
    path = clone / "runs" / "best" / "submission.csv"
    path.parent.mkdir(parents=True)
    path.write_text(submission)
    upload = {"token": "t", "createUrl": f"{URL}/upload"}
    server.answers = {
        "StartSubmissionUpload": upload,
        "CreateSubmission": {"message": "Successfully submitted to the contest"},
    }
    status, printed = call(client, "submit", "--run", "best", "--data", tiny)
    assert status == 0, printed
    assert server.uploaded == submission.encode()
    assert server.received["CreateSubmission"]["submissionDescription"].startswith("best, commit ")
    server.answers["CreateSubmission"] = {"message": "Could not submit to competition"}
    assert call(client, "submit", "--run", "best", "--data", tiny)[0] == 1
    server.answers["StartSubmissionUpload"] = (403, {"code": 403, "message": "You must accept the rules"})
    status, printed = call(client, "submit", "--run", "best", "--data", tiny)
    assert status == 1 and "accept its rules" in printed
    server.received.clear()
    path.write_text("ID,Mask\nother,1 5\n")
    status, printed = call(client, "submit", "--run", "best", "--data", tiny)
    assert status == 1 and "missing or unknown ids" in printed and server.received == {}
    assert "no " in call(client, "submit", "--run", "none", "--data", tiny)[1]
    (tiny / "Test" / "Image" / "case_9.jpg").unlink()
    assert "no test images here" in call(client, "submit", "--run", "best", "--data", tiny)[1]


def test_the_contests_data_is_downloaded_and_found(clone, call, server, tiny):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in tiny.rglob("*.*"):
            archive.write(path, Path("Dataset") / path.relative_to(tiny))
    server.answers = {"DownloadDataFiles": f"{URL}/bundle/archive.zip", "archive.zip": packed.getvalue()}
    status, printed = call(client, "download")
    assert status == 0 and f"data/{A0.slug}/Dataset" in printed.splitlines()[-1], printed
    assert sorted(path.name for path in (clone / "data" / A0.slug).iterdir()) == ["Dataset"]
    status, printed = call(client, "download", "-p", "slug", "another-contest")
    assert status == 0 and "data/another-contest/Dataset" in printed.splitlines()[-1], printed
    assert server.received["DownloadDataFiles"]["competitionName"] == "another-contest"
    server.answers = {"DownloadDataFiles": (403, {"code": 403, "message": "Forbidden"})}
    status, printed = call(client, "download")
    assert status == 1 and "accept its rules" in printed


@pytest.mark.parametrize("damage", ["half", "HTML", "a changed byte", "nothing", "a password"])
def test_an_archive_that_is_not_whole_is_said_so_and_nothing_is_replaced(clone, call, server, tiny, damage):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("Dataset/Train/Image/a.png", bytes(5000))
    whole = packed.getvalue()
    content = {"half": whole[:3000], "HTML": b"<html>sign in</html>", "nothing": b""}
    content |= {"a changed byte": whole[:2000] + b"?" + whole[2001:]}
    locked, entry = bytearray(whole), whole.rindex(b"PK\1\2")
    locked[6] = locked[entry + 8] = 1  # a flag: encrypted
    content |= {"a password": bytes(locked)}
    here = clone / "data" / A0.slug / "Dataset" / "Train" / "Image" / "here.png"
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text("from the download before")
    server.answers = {"DownloadDataFiles": f"{URL}/bundle/archive.zip", "archive.zip": content[damage]}
    status, printed = call(client, "download")
    assert status == 1, printed
    assert "is not a whole archive" in printed and "delete it, and download again" in printed.splitlines()[-1]
    assert here.read_text() == "from the download before"
    assert not list((clone / "data").glob(".partial*"))
    (clone / "data" / A0.slug / f"{A0.slug}.zip").unlink()
