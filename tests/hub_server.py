"""A Hub on this machine that serves one dataset out of a folder: what `datasets` asks of the real
one, and no more.

`python hub_server.py FOLDER LOG` prints its port. The dataset is owner/name; every request is a
line of LOG."""

import hashlib
import http.server
import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any

NAME = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    log: Path

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        with self.log.open("a") as log:
            log.write(f"{self.command} {self.path}\n")

        info, tree, files = (
            f"/api/datasets/{NAME}",
            f"/api/datasets/{NAME}/tree/",
            f"/datasets/{NAME}/resolve/",
        )
        if path in (info, f"{info}/revision/main", f"{info}/revision/{COMMIT}"):
            self.send({"_id": "1", "id": NAME, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{info}/revision/"):
            self.refuse("RevisionNotFound")
        elif path.startswith(f"{tree}{COMMIT}"):
            place = self.folder / path.removeprefix(f"{tree}{COMMIT}").strip("/")
            recursive = "recursive=true" in self.path.lower()
            found = sorted(place.rglob("*") if recursive else place.glob("*"))
            (
                self.send([self.entry(file) for file in found])
                if place.is_dir()
                else self.refuse("EntryNotFound")
            )
        elif path.startswith(f"{files}{COMMIT}/"):
            file = self.folder / path.removeprefix(f"{files}{COMMIT}/")
            self.send_file(file) if file.is_file() else self.refuse("EntryNotFound")
        else:
            self.refuse("RepoNotFound")

    do_HEAD = do_GET

    def entry(self, file: Path) -> dict[str, Any]:
        facts = {
            "path": file.relative_to(self.folder).as_posix(),
            "oid": hashlib.sha1(file.name.encode()).hexdigest(),
        }
        return {
            **facts,
            **(
                {"type": "file", "size": file.stat().st_size}
                if file.is_file()
                else {"type": "directory"}
            ),
        }

    def send_file(self, file: Path) -> None:
        data = file.read_bytes()
        start, end = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)

        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"} if wanted else {}
        self.answer(
            206 if wanted else 200, data[start : end + 1], {"ETag": f'"{file.name}"', **headers}
        )

    def send(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.answer(404, b"{}", {"X-Error-Code": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            **headers,
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)

        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    Hub.folder, Hub.log = Path(sys.argv[1]), Path(sys.argv[2])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_port, flush=True)
    server.serve_forever()
