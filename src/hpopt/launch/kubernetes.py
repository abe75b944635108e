"""Run workers as an Indexed Job of Kubernetes: write its manifest, create it, delete it.

The database, the dashboard and the migrations on Kubernetes are in docker/kubernetes.
"""

import re
import time
from typing import Any

import yaml

from hpopt.errors import InputError
from hpopt.launch.job import JobSpec, run_client

# As in docker/kubernetes.
NAMESPACE = "hpopt"
SECRET, SECRET_KEY = "hpopt-worker", "url"
VOLUME, HOME = "hpopt-home", "/var/lib/hpopt"
_USER_ID = 10001
# A worker handles SIGTERM within 10 s.
_GRACE_PERIOD_S = 30
_TTL_AFTER_FINISHED_S = 7 * 24 * 3600
# How often a worker that failed or was killed is replaced by a new pod. Preemptions do not count.
_BACKOFF_LIMIT = 5
_HINT = "--dry-run prints the job without it"
_LABEL = "hpopt/study"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def write_manifest(job: JobSpec, *, image: str, namespace: str) -> str:
    """Return the Kubernetes Job as YAML. The database's URL stays in a Secret of the cluster.

    Raises InputError for an invalid namespace.
    """
    if not _NAME.fullmatch(namespace):
        raise InputError(f"--namespace: expected lower-case letters, digits and hyphens, got '{namespace}'")
    # Each launch of a study creates a job of its own.
    name = f"{job.name}-{int(time.time()):x}"
    labels = {"app.kubernetes.io/name": "hpopt", "app.kubernetes.io/component": "worker", _LABEL: job.name}
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.n_workers,
            "parallelism": job.n_workers,
            "backoffLimitPerIndex": _BACKOFF_LIMIT,
            "ttlSecondsAfterFinished": _TTL_AFTER_FINISHED_S,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": {"labels": {**labels}}, "spec": _pod_spec(job, image)},
        },
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False)
    return text


def submit(manifest: str) -> str:
    """Create a job and return its name. Raises InputError if the cluster refuses it."""
    return run_client(["kubectl", "create", "--filename=-", "--output=name"], hint=_HINT, stdin=manifest)


def delete(job: JobSpec, *, namespace: str) -> int:
    """Delete the jobs of a study and return their number. Their workers return their trials to the queue."""
    command = ["kubectl", "delete", "jobs", f"--namespace={namespace}", f"--selector={_LABEL}={job.name}"]
    output = run_client([*command, "--output=name", "--wait=false"], hint=_HINT)
    # Without a job kubectl prints "No resources found", also to standard output.
    return sum(line.startswith("job") for line in output.splitlines())


def _failure_rules() -> list[dict[str, Any]]:
    """Return what follows when a pod fails: code 75 and evictions do not count, code 2 fails the whole job."""

    def on_exit_code(action: str, code: int) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"containerName": "worker", "operator": "In", "values": [code]}}

    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [on_exit_code("Ignore", 75), evicted, on_exit_code("FailJob", 2)]


def _pod_spec(job: JobSpec, image: str) -> dict[str, Any]:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": job.gpus_per_worker}}} if job.gpus_per_worker else {}
    worker = {
        "name": "worker",
        "image": image,
        "args": list(job.command),
        "env": [
            {"name": "HPOPT_STORAGE", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": SECRET_KEY}}},
            {"name": "HPOPT_HOME", "value": HOME},
            {"name": "HPOPT_ENGINE", "value": "kubernetes"},
            {"name": "HPOPT_JOB", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "HPOPT_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        **gpus,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - inside the pod.
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_PERIOD_S,
        # A worker does not call the cluster's API.
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [worker],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": VOLUME}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
