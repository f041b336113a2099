"""As much of a Kubernetes API server as `kubectl apply` of our objects asks for."""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = {
    "jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
    "trainer.kubeflow.org/v1alpha1": {
        "trainjobs": "TrainJob",
        "trainingruntimes": "TrainingRuntime",
    },
}


Given = list[tuple[str, dict[str, Any]]]
"""Query and object."""


@contextmanager
def api_server() -> Iterator[tuple[str, Given]]:
    """Its address, and what it is given."""
    created: Given = []
    there: dict[str, dict[str, Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in there:
                self._answer(200, there[path])
            elif (found := discovery(path)) is not None:
                self._answer(200, found)
            else:
                self._answer(
                    404,
                    {
                        "kind": "Status",
                        "apiVersion": "v1",
                        "status": "Failure",
                        "reason": "NotFound",
                        "code": 404,
                    },
                )

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            created.append((query, copy.deepcopy(given)))
            there[f"{path}/{given['metadata']['name']}"] = given
            self._answer(201, given)

        def _answer(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", created
    finally:
        server.shutdown()
        server.server_close()


def discovery(path: str) -> dict[str, Any] | None:
    """Which kinds there are."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [version.partition("/") for version in KINDS]
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, _, version in groups
            ],
        }
    if path == "/api/v1":
        return {"kind": "APIResourceList", "groupVersion": "v1", "resources": []}
    if path == "/openapi/v3":  # kubectl asks the server to validate, if it can
        paths = {
            f"apis/{version}": {"serverRelativeURL": f"/openapi/v3/apis/{version}"}
            for version in KINDS
        }
        return {"paths": paths}
    if (
        path.startswith("/openapi/v3/apis/")
        and (version := path.removeprefix("/openapi/v3/apis/")) in KINDS
    ):
        group, _, number = version.partition("/")
        parameters = [{"name": "fieldValidation", "in": "query"}]
        return {
            "openapi": "3.0.0",
            "info": {"title": "", "version": ""},
            "paths": {
                f"/apis/{version}/namespaces/{{namespace}}/{plural}/{{name}}": {
                    "patch": {
                        "parameters": parameters,
                        "responses": {},
                        "x-kubernetes-group-version-kind": {
                            "group": group,
                            "version": number,
                            "kind": kind,
                        },
                    }
                }
                for plural, kind in KINDS[version].items()
            },
        }
    if path.startswith("/apis/") and (version := path.removeprefix("/apis/")) in KINDS:
        return {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {
                    "name": plural,
                    "kind": kind,
                    "namespaced": True,
                    "verbs": ["create", "get", "patch"],
                }
                for plural, kind in KINDS[version].items()
            ],
        }
    return None
