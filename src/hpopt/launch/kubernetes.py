"""Owns workers as an Indexed Job of Kubernetes: its manifest, handing it in, deleting it.

Leaves what they do to worker.py, and the service around them (database, dashboard, migrations) to docker/kubernetes.
"""

import re
import time
from typing import Any

import yaml

from hpopt.errors import InputError
from hpopt.launch.client import ask
from hpopt.launch.job import Order

# As docker/kubernetes has them.
NAMESPACE = "hpopt"
SECRET, SECRET_KEY = "hpopt-database", "url"
VOLUME, HOME = "hpopt-home", "/var/lib/hpopt"
_USER = 10001
# A worker answers SIGTERM within 10 s.
_GRACE_S = 30
_WEEK_S = 7 * 24 * 3600
# How often a worker that failed or was killed is started anew in another pod; being preempted does not count.
_MAX_DEATHS = 5
_MISSING = "it hands the job to the cluster; --dry-run prints the job without it"
_LABEL = "hpopt/study"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def write_manifest(order: Order, *, image: str, namespace: str) -> str:
    """Give the Job of an order as YAML; the database's URL is in a secret of the cluster and not in it.

    Raises InputError for a namespace that cannot be one.
    """
    if not _NAME.fullmatch(namespace):
        raise InputError(f"--namespace: '{namespace}' is not a name of lower-case letters, digits and hyphens")
    # A second launch of a study is a second job.
    name = f"{order.name}-{int(time.time()):x}"
    labels = {"app.kubernetes.io/name": "hpopt", "app.kubernetes.io/component": "worker", _LABEL: order.name}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": order.n_workers,
            "parallelism": order.n_workers,
            "backoffLimitPerIndex": _MAX_DEATHS,
            "ttlSecondsAfterFinished": _WEEK_S,
            "podFailurePolicy": {"rules": _what_an_end_means()},
            "template": {"metadata": {"labels": {**labels}}, "spec": _pod(order, image)},
        },
    }
    text: str = yaml.safe_dump(job, sort_keys=False)
    return text


def submit(manifest: str) -> str:
    """Hand in a job and give its name. Raises InputError when the cluster refuses it."""
    return ask(["kubectl", "create", "--filename=-", "--output=name"], missing=_MISSING, text=manifest)


def delete(order: Order, *, namespace: str) -> int:
    """Delete the jobs of a study and give their number; their workers hand their trials back."""
    command = ["kubectl", "delete", "jobs", f"--namespace={namespace}", f"--selector={_LABEL}={order.name}"]
    return len(ask([*command, "--output=name", "--wait=false"], missing=_MISSING).splitlines())


def _what_an_end_means() -> list[dict[str, Any]]:
    """Say what becomes of a pod by its end: 0 is the end of the study, and what is not told here is tried again."""

    def by_code(action: str, code: int) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"containerName": "worker", "operator": "In", "values": [code]}}

    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [by_code("Ignore", 75), evicted, by_code("FailJob", 2)]


def _pod(order: Order, image: str) -> dict[str, Any]:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": order.gpus_per_worker}}} if order.gpus_per_worker else {}
    worker = {
        "name": "worker",
        "image": image,
        "args": list(order.command),
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
        "volumeMounts": [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - of the pod.
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        # A worker has no business with the cluster's own API.
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [worker],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": VOLUME}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
