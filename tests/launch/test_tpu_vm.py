"""launch/tpu_vm.sh: what is asked of gcloud, and when; and what then happens on the machines."""

import itertools
import shlex

import pytest

STAY = "trap 'exit 143' TERM; while :; do sleep 0.05; done"
# stays the first time, is done the second
ONCE = f'(($(wc -l <"$CLOUD/started-$(basename "$HOME")") > 1)) && exit 0; {STAY}'
TRAIN = "train --config=configs/tiny.py --workdir=gs://bucket/tiny"


def test_create_asks_once(cloud):
    cloud.queue(["WAITING_FOR_RESOURCES", "ACTIVE"])
    cloud("create")
    assert "exists already: WAITING_FOR_RESOURCES" in cloud("create")
    cloud("wait")
    assert cloud.changes() == ["create"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "--node-id=tiny --spot"),
        (
            {"CAPACITY": "on-demand", "CREATE_FLAGS": "--network=mine --internal-ips"},
            "--node-id=tiny --network=mine --internal-ips",
        ),
        ({"CAPACITY": "reserved", "SLICES": "4"}, "--node-count=4 --reserved"),
    ],
)
def test_what_is_created(cloud, settings, expected):
    cloud.queue(["ACTIVE"])
    cloud("create", ACCELERATOR_TYPE="v6e-64", RUNTIME_VERSION="v2-alpha-tpuv6e", **settings)
    assert cloud.calls()[-1] == [
        *(
            "queued-resources",
            "create",
            "tiny",
            "--accelerator-type=v6e-64",
            "--runtime-version=v2-alpha-tpuv6e",
        ),
        *expected.split(),
        *("--project=tests", "--zone=here-1"),
    ]


def test_nothing_is_created_when_gcloud_fails(cloud):
    cloud.queue(["ACTIVE"], left=["!"])
    cloud("create", status=1)
    assert cloud.changes() == []


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "ACTIVE/PREEMPTED", "ACTIVE/TERMINATED"])
def test_wait_ends_when_there_is_nothing_to_wait_for(cloud, state):
    cloud.queue(left=["PROVISIONING", state])
    said = cloud("wait", status=2)
    assert "tiny: PROVISIONING" in said
    assert "was preempted or could not be had" in said


def test_there_must_be_something_to_wait_for(cloud):
    assert "tiny is not there; launch/tpu_vm.sh create" in cloud("wait", status=2)


def test_wait_waits_for_the_machines_too(cloud):
    cloud.queue(left=["ACTIVE/CREATING", "ACTIVE/REPAIRING", "ACTIVE"])
    assert "machines: CREATING" in cloud("wait")
    assert "ready" in cloud("status")


def test_install_skips_what_is_there(cloud):
    cloud.queue(left=["ACTIVE"])
    cloud("install")
    assert "is installed already" in cloud("install")
    assert cloud.changes() == ["copy", "install"]
    (cloud.checkout / "memjax" / "new.py").write_text("# not committed\n")
    (cloud.checkout / "configs" / "tiny.py").unlink()
    cloud("install")
    assert cloud.changes() == ["copy", "install"] * 2
    for worker in "01":
        sources = cloud.folder / "tiny" / worker / "memjax" / "src"
        assert (sources / "memjax" / "new.py").exists()
        assert not (sources / "configs" / "tiny.py").exists()


def test_setup_is_done_once_on_every_machine(cloud):
    cloud.queue(left=["ACTIVE"])
    setup = "memjax setup 'a b'; echo \"$PWD\" >>corpus"
    for _ in range(2):
        cloud("install", SETUP=setup)
    assert cloud.started(0) == cloud.started(1) == ["setup a b"]
    assert (cloud.folder / "tiny/1/memjax/corpus").read_text() == f"{cloud.folder}/tiny/1/memjax\n"
    cloud("install", SETUP="exit 3", status=1)
    assert cloud.changes() == ["copy", "install"] * 2
    cloud("install", SETUP="")
    assert cloud.changes() == ["copy", "install"] * 3


def test_an_installation_that_failed_on_one_machine_is_done_again(cloud):
    cloud.queue(left=["ACTIVE"])
    cloud("install")
    (cloud.folder / "tiny" / "1" / "memjax" / "installed").unlink()
    cloud("install")
    assert cloud.changes() == ["copy", "install"] * 2


def test_run_starts_once_on_every_machine_and_stop_ends_it(cloud):
    cloud.queue(left=["ACTIVE"])
    cloud.memjax(
        'echo "said in $HOME"; mkdir -p bucket/tiny/data bucket/tiny/stages; touch'
        f" bucket/tiny/{{data/x,stages/y}}; {STAY}"
    )
    cloud("install")
    flag = "--config.objectives={'next token': \"$1\"}"
    cloud("run", flag)
    assert "running here already" in cloud("run", flag)
    assert cloud.started(0) == cloud.started(1) == [f"{TRAIN} {flag}"]
    assert cloud("status").count(": running") == 2
    (cloud.checkout / "memjax" / "new.py").write_text("# another version\n")
    assert "stop it first" in cloud("install", status=1)
    cloud("stop")
    for _ in range(100):
        if ": running" not in (said := cloud("status")):
            break
    assert said.count(": exit 143") == 2
    cloud("logs", "--collect", LOGS="collected")
    for worker in "01":
        log = (cloud.folder / "collected" / f"tiny-{worker}.log").read_text()
        assert f"said in {cloud.folder}/tiny/{worker}" in log
    results = cloud.folder / "collected" / "results"
    assert [str(path.relative_to(results)) for path in results.rglob("*")] == ["stages", "stages/y"]


def test_several_slices(cloud):
    cloud.queue(["ACTIVE"])
    cloud("create", SLICES="2")
    cloud("install", SLICES="2")
    cloud("run", SLICES="2")
    assert len(cloud.started(0)) == len(cloud.started(1)) == 2
    assert cloud("status", SLICES="2").count(": exit 0") == 4


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SUSPENDED", "FAILED", "ACTIVE/PREEMPTED"])
def test_watch_goes_on_after_a_preemption(cloud, end):
    """Created, waited for, installed, started, seen running, preempted; and all of it again, to the
    end."""
    cloud.queue(
        ["WAITING_FOR_RESOURCES", "!", "ACTIVE", "RUNNING", end], ["PROVISIONING", "ACTIVE"]
    )
    cloud.memjax(f"mkdir -p bucket/tiny; echo {{}} >bucket/tiny/results.json; {ONCE}")
    said = cloud("watch", "--config.seed=3")
    life = ["create", "copy", "install", "run"]
    collected = ["copy"] * 3  # two logs and what there is in results
    assert cloud.changes() == [*life, "delete", *life, *collected]
    assert (cloud.folder / "runs/launch/tiny/results/results.json").read_text() == "{}\n"
    assert cloud.started() == [f"{TRAIN} --config.seed=3"] * 2
    lines = [
        line.removeprefix("launch: tiny: ")
        for line in said.splitlines()
        if line.startswith("launch: tiny: ")
    ]
    seen = [line for line, _ in itertools.groupby(lines)]
    before, after = (
        ["absent", "WAITING_FOR_RESOURCES", "gcloud failed", "none", "running", "lost"],
        ["PROVISIONING", "none"],
    )
    assert seen == [*before, *after, "finished"]


@pytest.mark.slow
def test_watch_goes_on_with_the_sources_it_began_with(cloud):
    cloud.queue(["ACTIVE", "RUNNING", "SUSPENDED"], ["ACTIVE"])
    new = cloud.checkout / "memjax" / "new.py"
    cloud.memjax(f'touch "{new}"; {ONCE}')
    cloud("watch")
    assert len(cloud.started()) == 2
    assert new.exists()
    assert not (cloud.folder / "tiny" / "0" / "memjax" / "src" / "memjax" / "new.py").exists()


@pytest.mark.slow
def test_watch_starts_what_ended_again_but_not_forever(cloud):
    cloud.queue(["ACTIVE"])
    cloud.memjax("exit 134")
    assert "restarted 2 times" in cloud("watch", status=2, MAX_RESTARTS="2")
    assert len(cloud.started()) == 3
    assert cloud.changes() == ["create", "copy", "install", "run", "run", "run"]


def test_watch_does_not_repeat_what_memjax_refuses(cloud):
    cloud.queue(["ACTIVE"])
    cloud.memjax("exit 2")
    assert "memjax refused to run" in cloud("watch", status=2)
    assert len(cloud.started()) == 1
    # When it was mended, watching it again runs it, whatever the last one came to.
    cloud.memjax("exit 0")
    (cloud.checkout / "memjax" / "mended.py").write_text("# mended\n")
    assert "finished" in cloud("watch")
    assert len(cloud.started()) == 2


def test_delete_gives_back_once(cloud):
    cloud.queue(left=["ACTIVE"])
    cloud("delete")
    assert "is not there" in cloud("delete")
    assert cloud.changes() == ["delete"]


def test_a_dry_run_prints_every_step_and_calls_nothing(cloud):
    said = cloud("watch", DRY_RUN="1", SLICES="2")
    assert cloud.calls() == []
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("gcloud ")]
    verbs = [" ".join(command[3:5]) for command in commands]
    assert [verb for verb in verbs if not verb.endswith("list")] == [
        "queued-resources create",
        *["tpu-vm scp"] * 2,
        *["tpu-vm ssh"] * 4,
    ]
    assert all(command[-2:] == ["--project=tests", "--zone=here-1"] for command in commands)
    assert f"--command=bash memjax/src/launch/worker.sh run {TRAIN}" in commands[-1]
    assert "queued-resources delete tiny --force" in cloud("delete", DRY_RUN="1")


WRONG = {
    "no project": ({"PROJECT": ""}, "PROJECT is not set"),
    "no bucket": ({"BUCKET": ""}, "WORKDIR=runs/tiny is not in a bucket"),
    "a name": ({"RUN_NAME": "Tiny"}, "RUN_NAME=Tiny; use at most 40"),
    "a long name": ({"RUN_NAME": "t" * 41}, "use at most 40"),
    "no slice": ({"SLICES": "0"}, "SLICES=0"),
    "no number": ({"MAX_RESTARTS": "many"}, "MAX_RESTARTS=many is not an integer"),
    "capacity": ({"CAPACITY": "cheap"}, "CAPACITY=cheap; use spot, reserved or on-demand"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_are_named_before_anything_is_done(cloud, settings, message):
    assert message in cloud("watch", status=2, **settings)
    assert cloud.calls() == []


def test_a_command_that_is_none(cloud):
    assert "usage: launch/tpu_vm.sh" in cloud("crate", status=2)
    assert "usage: launch/tpu_vm.sh" in cloud("--help")
