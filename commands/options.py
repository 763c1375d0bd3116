"""The options of `launch.py submit`."""

import argparse

GRACE_S = 600.0


def add_submit_options(command: argparse.ArgumentParser) -> None:
    """Add them to the command, which has --config, --dry-run and --force already."""
    add = command.add_argument
    add("--to", choices=["ray", "k8s"], default="ray", help="jobs of a Ray cluster, or KubeRay")
    add("--run", metavar="NAME", help="the run to --follow, --stop or --status; nothing is submitted then")
    add("--follow", action="store_true", help="print the run's log as it comes; its exit code is the command's")
    add("--stop", action="store_true", help="let the run finish its step and save, and wait for its end")
    add("--status", action="store_true", help="show the jobs of the run")
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="after a crash the job goes on from the newest checkpoint, as in train; with --follow, a job that is "
        "lost as a whole is submitted again as often",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="variable of the job; without =VALUE that of this environment; may be repeated",
    )
    add("--grace", type=float, metavar="SECONDS", help=f"time to drain when it is stopped (default {GRACE_S:g})")
    add(
        "--node-groups",
        action="store_true",
        help="bind workers to nodes with the custom resources rollout, teacher and learner",
    )
    add("--address", help="Ray's jobs API (default RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)")
    add("--entrypoint-num-cpus", type=float, metavar="N", help="CPUs that Ray reserves for the run's own process")
    add(
        "--entrypoint-resources",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="custom resource of the node of the run's own process (default: Ray's head); may be repeated",
    )
    add("--overlay", metavar="DIR", help="k8s: kustomize overlay (default docker/k8s/overlays/cpu-kind)")
    add("--namespace", help="k8s: namespace (default: the overlay's)")
    add("--priority-class", metavar="NAME", help="k8s: priority class of the pods")
