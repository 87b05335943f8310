"""What `netagent doctor` finds in files and processes that really are so, and what it does without rights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netagent import cli
from netagent.cni import install
from support.doctorbed import DoctorBed, has, nft, sh, sort

pytestmark = pytest.mark.kernel


def test_a_configuration_of_others_that_goes_first(bed: DoctorBed) -> None:
    bed.conf("99-other.conflist", "ptp")
    bed.conf("05-flannel.conflist.disabled", "flannel")
    assert bed.levels() == {}
    bed.conf("05-flannel.conflist", "flannel", "portmap")
    assert bed.levels() == {"cni.order": "warning"}
    with bed.serving():
        bed.conf("10-netagent.conflist", "netagent")
        found = bed.one("cni.order")
        assert found["level"] == "error"
        assert "05-flannel.conflist before 10-netagent.conflist" in found["found"]


def test_our_configuration_that_somebody_overwrote(bed: DoctorBed) -> None:
    path = bed.conf("10-netagent.conflist", "netagent", "portmap")
    with bed.serving():
        assert "cni.conflist" not in bed.levels()
        bed.conf("10-netagent.conflist", "calico")
        assert bed.levels()["cni.conflist"] == "error"
        path.write_text("{")
        assert bed.levels()["cni.conflist"] == "error"
        path.unlink()
        assert bed.levels()["cni.conflist"] == "error"


def test_policy_only_needs_somebody_elses_plugin(bed: DoctorBed) -> None:
    bed.set("network", mode="off")
    bed.set("cni", enabled=False)
    assert bed.levels() == {"cni.order": "warning"}
    bed.set("cni", enabled=False, conf_dir=str(bed.home / "not-mounted"))
    assert bed.levels() == {"cni.order": "unknown"}
    bed.set("cni", conf_dir=str(bed.home / "net.d"))
    bed.conf("10-calico.conflist", "calico")
    assert bed.levels() == {}


def test_the_executable(bed: DoctorBed) -> None:
    path = bed.home / "bin/netagent"
    with bed.serving():
        bed.conf("10-netagent.conflist", "netagent")
        assert bed.levels() == {"cni.executable": "error"}
        path.write_bytes(install.SHIM.read_bytes() if install.SHIM.exists() else b"")
        path.chmod(0o755)
        assert bed.levels() == {}
        path.write_bytes(b"older")
        assert bed.one("cni.executable")["level"] == "info"
        path.chmod(0o644)
        assert bed.levels() == {"cni.executable": "error"}


def test_the_state_directory(bed: DoctorBed) -> None:
    state = bed.home / "state"
    state.chmod(0o777)
    assert bed.levels() == {"state.dir": "warning"}
    sh(f"mount -t tmpfs -o size=20m,mode=700 tmpfs {state}")
    try:
        assert bed.levels() == {"state.space": "warning"}
        (state / "ballast").write_bytes(bytes(19 << 20) + bytes(900 << 10))
        assert bed.levels() == {"state.space": "error"}
        (state / "ballast").unlink()
        sh(f"mount -o remount,nr_inodes=20 {state}")
        assert bed.levels() == {"state.space": "error"}
        sh(f"mount -o remount,ro {state}")
        assert bed.levels()["state.dir"] == "error"
    finally:
        sh(f"umount {state}")


def test_state_of_a_newer_version(bed: DoctorBed) -> None:
    (bed.home / "state/format").write_text("2\n")
    found = bed.one("state.format")
    assert (found["level"], "a newer netagent keeps its state here" in found["found"]) == ("error", True)


def test_a_node_that_was_left_by_its_agent(bed: DoctorBed) -> None:
    assert bed.one("agent.running")["level"] == "info"
    nft("add table inet netagent")
    found = bed.one("agent.running")
    assert (found["level"], "the table" in found["found"]) == ("error", True)
    nft("delete table inet netagent")
    bed.conf("10-netagent.conflist", "netagent")
    assert bed.levels() == {"agent.running": "error"}


def test_an_agent_that_waits_for_the_api_server(bed: DoctorBed, capsys: pytest.CaptureFixture[str]) -> None:
    with bed.agent() as process:
        bed.until(bed.home.joinpath("run/cni.sock").exists, "socket")
        _, found = bed.examine()
        assert found["agent.running"][0]["found"] == f"an agent runs: process {process.pid}"
        assert found["cni.socket"][0]["level"] == "ok"
        code = cli.main(["doctor", "--no-api", "--output", "json"])
        _, alone = sort(capsys.readouterr().out, code)
        assert alone["config.file"][0]["found"] == str(bed.config)
        assert alone["cni.socket"] == found["cni.socket"]
        assert found["agent.ready"][0]["level"] == "warning"
        assert "dataplane" in found["agent.ready"][0]["found"]
        status = ["status", "--config", str(bed.config), "--output", "json"]
        assert cli.main(status) == 1
        answer = json.loads(capsys.readouterr().out)
        assert (answer["node"], answer["ready"], answer["not_answered"]) == ("bed", False, {})
        assert answer["parts"]["dataplane"]
        bed.set("cni", socket=str(bed.home / "elsewhere.sock"))
        elsewhere = bed.one("cni.socket")
        assert (elsewhere["level"], "elsewhere.sock, which is not there" in elsewhere["found"]) == ("error", True)
        bed.sections["http"]["debug_port"] = 19297
        assert cli.main([*status[:2], str(bed.config)]) == 1
        printed = capsys.readouterr().out
        assert "? state: Connection refused" in printed
        assert "- dataplane: " in printed
    assert cli.main(status) == 2
    assert "no agent answers at http://127.0.0.1:19297" in capsys.readouterr().err


def test_two_agents(bed: DoctorBed) -> None:
    program = bed.home / "agent"
    program.write_text("import sys; sys.stdin.read()")
    argv = ["netagent", str(program)]
    with bed.agent() as one:
        # Only its command line is an agent's.
        argv[1] = "agent"
        two = subprocess.Popen(argv, executable=sys.executable, cwd=bed.home, stdin=subprocess.PIPE)
        try:
            bed.until(lambda: b"agent" in Path(f"/proc/{two.pid}/cmdline").read_bytes(), "second process")
            found = bed.one("agent.running")
            assert found["level"] == "error"
            assert str(one.pid) in found["found"]
            assert str(two.pid) in found["found"]
        finally:
            two.communicate()


def test_a_configuration_that_is_refused(bed: DoctorBed) -> None:
    bed.set("network", vnii=3)
    status, found = bed.examine()
    assert status == 2
    assert "network.vnii: no such option" in found["config.file"][0]["found"]
    assert found["kernel.table"][0]["level"] == "ok"


@has("setpriv")
def test_without_capabilities_it_says_what_it_could_not_look_at(bed: DoctorBed) -> None:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    command = [*drop, sys.executable, "-m", "netagent", "doctor", "--no-api", "-o", "json", "--config", str(bed.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.stderr == ""
    status, found = sort(done.stdout, done.returncode)
    assert status == 1, found
    unknown = {name for name, many in found.items() for one in many if one["level"] == "unknown"}
    assert {"process.capabilities", "kernel.features", "firewall.nftables"} <= unknown
    assert {one["level"] for many in found.values() for one in many} <= {"ok", "info", "unknown"}
    assert found["mtu.links"][0]["level"] == "ok"


def test_text_names_the_worst_first_and_what_to_do(bed: DoctorBed, capsys: pytest.CaptureFixture[str]) -> None:
    bed.conf("05-flannel.conflist", "flannel")
    sh("ip link add vx0 type vxlan id 1 dstport 8472 dev up0")
    command = ["doctor", "--config", str(bed.config), "--no-api"]
    assert cli.main(command) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("error    links.vxlan: ")
    assert "\n         -> remove it if its owner is gone" in printed
    assert printed.index("links.vxlan") < printed.index("warning  cni.order")
    assert "\nok " not in printed
    assert cli.main([*command, "--all"]) == 2
    assert "\nok       kernel.veth: " in capsys.readouterr().out
