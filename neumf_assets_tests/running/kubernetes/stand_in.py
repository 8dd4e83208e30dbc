"""A stand-in for a Kubernetes cluster: its API on 127.0.0.1, and pods that are processes of this machine.

It is: the requests that Dagster makes of a cluster (Jobs made, read, listed, deleted; pods listed, read, deleted,
their logs), answered as a cluster does. A Job is refused as an API server would refuse it
(``kubernetes_objects``), its pod is started with the container's command, arguments and variables and those of
the config maps and secrets that it names, the process's end is the pod's end, and deleting a pod sends SIGTERM
and, after the grace period, SIGKILL.

It is not: a cluster. There are no images, nodes, schedulers, volumes, users or network; resources are checked
and not enforced; what a volume would hold must lie at the path where it is mounted; a Job whose pod fails is not
tried again. A pod that waits for a secret, a config map or a claim that is not there waits for ever, as on a
cluster.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from neumf_assets_tests.running.kubernetes.objects import Refused, check_object

_GRACE_SECONDS = 30.0
_JOBS = ("apis", "batch", "v1", "namespaces")
_CORE = ("api", "v1", "namespaces")


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


def write_kubeconfig(path: Path, url: str, namespace: str = "default") -> Path:
    """A file by which clients find a cluster."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "tester", "user": {"token": "none"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "here", "user": "tester", "namespace": namespace}}
        ],
    }
    path.write_text(yaml.safe_dump(content))
    return path


class Pod:
    """One pod of a Job: a process, or the reason for which it waits."""

    def __init__(self, job: Mapping[str, Any], log: Path) -> None:
        template = job["spec"]["template"]
        self.job = job["metadata"]["name"]
        self.name = f"{self.job}-{uuid.uuid4().hex[:5]}"
        self.labels = {**template["metadata"].get("labels", {}), "job-name": self.job}
        self.spec, self.log = template["spec"], log
        self.waiting = "ContainerCreating"
        self.process: subprocess.Popen[bytes] | None = None
        self.deleted = False

    @property
    def exit_code(self) -> int | None:
        """Of the ended process, by a shell's counting; None while it runs or waits."""
        code = self.process.poll() if self.process else None
        return code if code is None or code >= 0 else 128 - code

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the container's process, in a session of its own."""
        container = self.spec["containers"][0]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*container.get("command", []), *container.get("args", [])],
                env={**environment, "HOSTNAME": self.name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def delete(self) -> None:
        """Ask the process to end, and kill it after the grace period."""
        self.deleted = True
        if self.process is None:
            return
        self.signal(signal.SIGTERM)
        grace = self.spec.get("terminationGracePeriodSeconds", _GRACE_SECONDS)
        timer = threading.Timer(grace, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """SIGKILL to the process and its children: what a lost node looks like, and what too little memory does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the container's first process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def found(self, namespace: str) -> dict[str, Any]:
        """The pod as the API shows it."""
        code, container = self.exit_code, self.spec["containers"][0]
        if self.process is None:
            phase, state = "Pending", {"waiting": {"reason": self.waiting}}
        elif code is None:
            phase, state = "Running", {"running": {"startedAt": _now()}}
        else:
            phase = "Failed" if code else "Succeeded"
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace, "labels": self.labels},
            "spec": self.spec,
            "status": {"phase": phase, "containerStatuses": [status]},
        }


class KubernetesStandIn:
    """The stand-in: a server, and the pods that it has started.

    Attributes
    ----------
    environment
        What every container's image would set.
    config_maps, secrets, claims
        What exists beforehand in the namespace.
    jobs, pods
        Every Job that was accepted (deleted ones too) and every pod, in the order of their making.
    refused
        Why Jobs were refused.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)
        self.config_maps: dict[str, dict[str, str]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.claims: set[str] = set()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[Pod] = []
        self.refused: list[str] = []
        self._lock = threading.RLock()
        self._deleted: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Kill what still runs, by its id, and stop serving."""
        self._server.shutdown()
        self._server.server_close()
        for pod in self.pods:
            pod.kill()

    def pod(self, label: str, value: str) -> Pod | None:
        """The newest pod with a label."""
        with self._lock:
            return next((pod for pod in reversed(self.pods) if pod.labels.get(label) == value), None)

    def exists(self, job: str) -> bool:
        """Whether a Job was made and not deleted."""
        return job in self.jobs and job not in self._deleted

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Any:
        """The answer to one request: an object, or a log's text."""
        parts = tuple(path.strip("/").split("/"))
        with self._lock:
            if parts[:4] == _JOBS and len(parts) >= 6 and parts[5] == "jobs":
                return self._about_jobs(method, parts[4], parts[6:], query, body)
            if parts[:3] == _CORE and len(parts) >= 5 and parts[4] == "pods":
                return self._about_pods(method, parts[3], parts[5:], query)
            if parts[:3] == _CORE and parts[4:] == ("events",) and method == "GET":
                return {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []}
        raise ApiError(501, "NotImplemented", f"the stand-in does not know {method} {path}")

    def _about_jobs(
        self, method: str, namespace: str, rest: tuple[str, ...], query: Mapping[str, str], body: Any
    ) -> Any:
        if method == "POST" and not rest:
            return self._make(namespace, body)
        if method == "GET" and not rest:
            wanted = _selector(query.get("fieldSelector", "")).get("metadata.name")
            names = [name for name in self.jobs if self.exists(name) and wanted in (None, name)]
            items = [self._job(namespace, name) for name in names]
            return {"kind": "JobList", "apiVersion": "batch/v1", "metadata": {}, "items": items}
        if not self.exists(rest[0]) or self.jobs[rest[0]]["metadata"]["namespace"] != namespace:
            raise ApiError(404, "NotFound", f"jobs.batch {rest[0]!r} not found")
        if method == "GET" and rest[1:] in ((), ("status",)):
            return self._job(namespace, rest[0])
        if method == "DELETE" and not rest[1:]:
            self._deleted.add(rest[0])  # its pods stay, which is what a cluster does by default, too
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        raise ApiError(405, "MethodNotAllowed", f"{method} of a Job")

    def _about_pods(
        self, method: str, namespace: str, rest: tuple[str, ...], query: Mapping[str, str]
    ) -> Any:
        present = [pod for pod in self.pods if not (pod.deleted and pod.exit_code is not None)]
        if method == "GET" and not rest:
            labels, fields = (_selector(query.get(f"{kind}Selector", "")) for kind in ("label", "field"))
            name = fields.get("metadata.name")
            items = [
                pod.found(namespace)
                for pod in present
                if labels.items() <= pod.labels.items() and name in (None, pod.name)
            ]
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        pod = next((pod for pod in present if rest and pod.name == rest[0]), None)
        if pod is None:
            raise ApiError(404, "NotFound", f"pods {'/'.join(rest)!r} not found")
        if method == "DELETE" and not rest[1:]:
            pod.delete()
        elif method == "GET" and rest[1:] == ("log",):
            return pod.log.read_text(errors="replace") if pod.log.exists() else ""
        elif method != "GET" or rest[1:]:
            raise ApiError(405, "MethodNotAllowed", f"{method} of a pod")
        return pod.found(namespace)

    def _make(self, namespace: str, job: dict[str, Any]) -> dict[str, Any]:
        name = job["metadata"]["name"]
        if self.exists(name):
            raise ApiError(409, "AlreadyExists", f"jobs.batch {name!r} already exists")
        try:
            check_object(job)
            if job["spec"].get("backoffLimit"):
                raise Refused("spec.backoffLimit: the stand-in starts a pod once")
        except Refused as error:
            self.refused.append(str(error))
            raise ApiError(422, "Invalid", str(error)) from None
        made = {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        self.jobs[name] = {**job, "metadata": {**job["metadata"], **made}}
        self._deleted.discard(name)
        pod = Pod(self.jobs[name], self.folder / f"{name}.log")
        self.pods.append(pod)
        try:
            pod.start(self._variables(pod.spec))
        except LookupError as error:
            pod.waiting = f"CreateContainerConfigError: {error.args[0]}"
        return self._job(namespace, name)

    def _variables(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """The variables of a pod's container; LookupError if something that it names is not there."""
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in self.claims:
                raise LookupError(f"persistentvolumeclaim {claim!r} not found")
        container, found = spec["containers"][0], dict(self.environment)
        for source in container.get("envFrom", []):
            for kind, there in (("configMapRef", self.config_maps), ("secretRef", self.secrets)):
                if kind in source and (source[kind]["name"] in there or not source[kind].get("optional")):
                    found |= _named(there, source[kind]["name"])
        for item in container.get("env", []):
            source = item.get("valueFrom", {})
            if reference := source.get("secretKeyRef"):
                found[item["name"]] = _named(self.secrets, reference["name"])[reference["key"]]
            elif reference := source.get("resourceFieldRef"):
                found[item["name"]] = str(_amount_of(container, reference))
            else:
                found[item["name"]] = item.get("value", "")
        return found

    def _job(self, namespace: str, name: str) -> dict[str, Any]:
        [pod] = [pod for pod in self.pods if pod.job == name][-1:]
        code = pod.exit_code
        status: dict[str, Any] = {"startTime": self.jobs[name]["metadata"]["creationTimestamp"]}
        if code is None:
            status["active"] = 1
        else:
            status["failed" if code else "succeeded"] = 1
            kind = {"type": "Failed" if code else "Complete", "status": "True"}
            status["conditions"] = [kind]
        return {**self.jobs[name], "status": status}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                url = urlsplit(self.path)
                query = {name: found[-1] for name, found in parse_qs(url.query).items()}
                status, found = 200, None
                try:
                    found = stand_in.answer(self.command, url.path, query, body)
                except ApiError as error:
                    status, about = error.status, {"reason": error.reason, "message": str(error)}
                    found = {
                        "kind": "Status",
                        "apiVersion": "v1",
                        "status": "Failure",
                        "code": status,
                        **about,
                    }
                text = found if isinstance(found, str) else json.dumps(found)
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if text is found else "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *arguments: Any) -> None:
                """Nothing: the tests look at what was asked, not at lines."""

        return Handler


@contextlib.contextmanager
def kubernetes_stand_in(folder: Path, **environment: str) -> Iterator[KubernetesStandIn]:
    """A running stand-in, whose images hold this interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stand_in = KubernetesStandIn(folder, {**kept, "PATH": path, **environment})
    try:
        yield stand_in
    finally:
        stand_in.close()


def _named(there: Mapping[str, dict[str, str]], name: str) -> dict[str, str]:
    if name not in there:
        raise LookupError(f"{name!r} not found")
    return there[name]


def _amount_of(container: Mapping[str, Any], reference: Mapping[str, str]) -> int:
    """A container's request or limit in units of the divisor, rounded up."""
    from kubernetes.utils.quantity import parse_quantity

    part, name = reference["resource"].split(".", 1)
    units = parse_quantity(container["resources"][part][name]) / parse_quantity(reference.get("divisor", "1"))
    return math.ceil(units)


def _selector(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
