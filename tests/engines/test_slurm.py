"""`hpopt launch --on slurm` on a real Slurm: every trial is accounted for, whatever becomes of the nodes."""

import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


@pytest.fixture
def user(slurm, workplace):
    """Somebody on a login node of the cluster."""
    workplace.environment["SLURM_CONF"] = str(slurm.conf)
    slurm.wait_until_idle()
    return workplace


def launch(user, study, *options):
    return user.hpopt("launch", study, "--on", "slurm", "--same-host", *user.patience, *options)


def queue(slurm):
    """Give the state of each task in the queue by its job."""
    listed = slurm.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in listed)


def test_a_study_finishes_exactly_its_budget_in_spite_of_a_lost_node(slurm, user):
    user.create("lost", trials=16, steps=30)
    said = launch(user, "lost", "--workers", "6")
    job = said.split("Slurm job ")[1].split(";")[0]

    def everybody_trains(status):
        return sum(worker["step"] is not None for worker in status["workers"]) == 6

    status = user.wait_until("lost", everybody_trains, seconds=60)
    assert {worker["host"] for worker in status["workers"]} == {"n1", "n2", "n3"}
    assert {worker["job"] for worker in status["workers"]} == {f"{job}_{task}" for task in range(1, 7)}
    assert {worker["engine"] for worker in status["workers"]} == {"slurm"}
    slurm.lose_node("n2")
    try:
        user.wait_until_over("lost", seconds=120)
    finally:
        slurm.start_node("n2")
    assert user.outcomes("lost")["lost"] == 2
    # Each worker had a GPU of its own.
    places = (user.folder / "places.txt").read_text().splitlines()
    assert {f"{node} {gpu}" for node in ("n1", "n2", "n3") for gpu in (0, 1)} == set(places)


def test_preempted_workers_hand_their_trials_back_and_come_again(slurm, user):
    user.create("preempted", trials=8, steps=80)
    launch(user, "preempted", "--workers", "6", "--partition", "gpu")
    user.wait_until("preempted", lambda status: status["books"]["n_held"] == 6, seconds=60)
    for _ in range(6):
        slurm.run("sbatch", "--partition=urgent", "--gres=gpu:1", "--output=/dev/null", "--wrap=sleep 5")
    user.wait_until("preempted", lambda status: status["books"]["n_waiting"] > 0, seconds=60)
    user.wait_until_over("preempted", seconds=150)
    outcomes = user.outcomes("preempted")
    assert outcomes["preempted"] >= 6
    assert "lost" not in outcomes


def test_cancelled_workers_hand_their_trials_back_and_stay_away(slurm, user):
    """Steps are so far apart that workers have to connect anew to hand them back."""
    user.create("cancelled", trials=100, steps=30, pace=8)
    launch(user, "cancelled", "--workers", "8")
    user.wait_until("cancelled", lambda status: status["books"]["n_held"] == 6, seconds=60)
    assert "8 cancelled (tasks in Slurm)" in user.hpopt("launch", "cancelled", "--on", "slurm", "--stop")
    status = user.status("cancelled")
    assert (status["workers"], status["books"]["n_held"], queue(slurm)) == ([], 0, {})
    assert user.outcomes("cancelled") == {"preempted": 6}
    # A task that put itself back into the queue would come after its delay.
    time.sleep(10)
    assert not queue(slurm)
    assert not user.status("cancelled")["workers"]


def test_a_worker_is_asked_to_stop_before_its_time_limit_and_runs_again(slurm, user):
    user.create("limited", trials=1, steps=600)
    launch(user, "limited", "--workers", "1", "--time", "2m")
    user.wait_until("limited", lambda status: status["books"]["n_waiting"] == 1, seconds=110)
    user.wait_until_over("limited", seconds=120)
    assert user.outcomes("limited")["preempted"] >= 1


def test_a_study_that_is_over_leaves_nothing_in_the_queue(slurm, user):
    """More workers than GPUs: those that were waiting find the study over and leave too."""
    user.create("short", trials=6, steps=3)
    launch(user, "short", "--workers", "9")
    user.wait_until_over("short", seconds=60)
    deadline = time.monotonic() + 30
    while queue(slurm):
        assert time.monotonic() < deadline, queue(slurm)
        time.sleep(0.5)


def test_the_password_is_nowhere_but_in_a_file_of_its_owner(slurm, user):
    password = urlsplit(user.url).password
    assert password
    user.create("secret", trials=100, steps=30)
    dry = launch(user, "secret", "--workers", "1", "--dry-run")
    launch(user, "secret", "--workers", "1")
    user.wait_until("secret", lambda status: status["workers"], seconds=60)
    (job,) = queue(slurm)
    shown = [
        dry,
        slurm.run("scontrol", "show", "job", "--details", job),
        slurm.run("scontrol", "write", "batch_script", job.replace("_1", ""), "-"),
        *(path.read_bytes().decode(errors="replace") for path in (slurm.folder / "state").rglob("*") if path.is_file()),
        *(log for log in user.logs().values()),
    ]
    assert "#SBATCH" in shown[0]
    assert not [text for text in shown if password in text]
    holders = [path for path in (user.folder / "home").rglob("*") if path.is_file() and password in _text(path)]
    assert [path.suffix for path in holders] == [".pgpass"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    user.hpopt("launch", "secret", "--on", "slurm", "--stop")
    assert not holders[0].exists()


def _text(path):
    return path.read_bytes().decode(errors="replace")


def test_on_one_machine_the_embedded_database_will_do(slurm, user):
    """Whoever comes first starts it, and it stops with the last."""
    del user.environment["HPOPT_STORAGE"]
    user.create("embedded", trials=4, steps=10)
    launch(user, "embedded", "--workers", "2")
    user.wait_until_over("embedded", seconds=60)


def test_a_refusal_of_slurm_is_one_line(user):
    user.create("refused", trials=1, steps=1)
    done = user.try_hpopt(
        *("launch", "refused", "--on", "slurm", "--same-host", "--workers", "1", "--partition", "nowhere")
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sbatch" in done.stderr
    assert "partition" in done.stderr


def test_the_readme_is_followed_word_for_word(slurm, user):
    """But for the names that stand for one's own, and for 64 workers."""
    readme = Path(__file__).parents[2] / "README.md"
    section = readme.read_text().split("### On a cluster")[1]
    commands = section.split("```bash\n")[1].split("```")[0]
    assert commands.count("hpopt launch quickstart --on slurm") == 2
    ours = {
        "postgresql://USER:PASSWORD@HOST/NAME": user.url,
        "/shared/hpopt ": f"{user.folder}/home ",
        "studies/quickstart.toml": "quickstart.toml",
        "--workers 64": "--workers 3 --same-host",
    }
    for theirs, mine in ours.items():
        assert theirs in commands
        commands = commands.replace(theirs, mine)
    user.write("quickstart", trials=100, steps=30)
    # Nobody reads on before the workers are there.
    told = "until hpopt status quickstart | grep -q 'slurm '; do sleep 0.5; done\nhpopt status quickstart"
    commands = commands.replace("hpopt status quickstart ", f"{told} ", 1)
    shell = {**user.environment, "PATH": f"{Path(sys.executable).parent}:{user.environment['PATH']}"}
    done = subprocess.run(
        ["bash", "-e"], input=commands, text=True, cwd=user.folder, env=shell, capture_output=True, check=False
    )
    assert done.returncode == 0, done
    assert "Slurm job" in done.stdout
    assert "@n1" in done.stdout
    assert "quickstart: 3 cancelled (tasks in Slurm)" in done.stdout
    user.wait_until("quickstart", lambda status: not status["workers"], seconds=30)
