"""What an installation says of vLLM is what was tested."""

from importlib.metadata import requires

from packaging.requirements import Requirement

from roadint.engines.vllm.versions import TESTED


def test_the_extra_wants_what_was_tested() -> None:
    (wanted,) = [
        requirement
        for requirement in map(Requirement, requires("roadint") or ())
        if requirement.name == "vllm"
    ]
    assert wanted.specifier == Requirement(f"vllm=={TESTED[0]}.*").specifier
    assert len(TESTED) == 1


def test_vllm_here_is_such_a_version() -> None:
    import vllm

    assert vllm.__version__.startswith(f"{TESTED[0]}.")
