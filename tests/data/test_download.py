"""Downloads from a local server that fails in every way."""

import hashlib
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from torch_rnn.data.download import download
from torch_rnn.errors import RunError

GOOD = bytes(range(256)) * 100
ANSWERS = {
    "/good": (200, len(GOOD), GOOD),
    "/missing": (404, 9, b"not found"),
    "/broken": (500, 0, b""),
    "/short": (200, len(GOOD) - 1, GOOD[:-1]),
    "/cut": (200, len(GOOD), GOOD[:1000]),
    "/long": (200, len(GOOD) + 1, GOOD + b"x"),
    "/other": (200, len(GOOD), GOOD[::-1]),
    "/slow": (200, len(GOOD), b"slow"),
    "/html": (200, 20, b"<html>sorry</html>  "),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, length, body = ANSWERS[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/slow":
            time.sleep(1)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(url, path):
    download(url, path, len(GOOD), hashlib.sha256(GOOD).hexdigest())


def test_a_good_file_is_downloaded(server, tmp_path):
    fetch(f"{server}/good", tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == GOOD
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_files_of_a_killed_download_are_removed_and_those_of_a_running_one_are_kept(server, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed, running = (tmp_path / f".file.{pid}.part" for pid in (ended.pid, os.getppid()))
    other = tmp_path / f".other.{ended.pid}.part"
    for part in (killed, running, other):
        part.write_bytes(GOOD[:100])
    fetch(f"{server}/good", tmp_path / "file")
    assert set(tmp_path.iterdir()) == {tmp_path / "file", running, other}


@pytest.mark.bad_input
@pytest.mark.parametrize("path", [path for path in ANSWERS if path != "/good"])
def test_a_wrong_answer_is_refused_and_leaves_nothing(server, tmp_path, path, monkeypatch):
    monkeypatch.setattr("torch_rnn.data.download.TIMEOUT", 0.3)
    with pytest.raises(RunError, match=f"{server}{path}"):
        fetch(f"{server}{path}", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    fetch(f"{server}/good", tmp_path / "file")


@pytest.mark.bad_input
def test_no_server_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match=r"cannot be read: .*refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file")
