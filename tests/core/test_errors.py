import pytest

from medvl_core.errors import ComponentLookupError, MedvlError, OptionError, did_you_mean


@pytest.mark.parametrize(
    ("word", "hint"), [("resnt", "; did you mean 'resnet'?"), ("zzz", ""), ("", "")], ids=["near", "far", "empty"]
)
def test_did_you_mean(word, hint):
    assert did_you_mean(word, ["resnet", "vit"]) == hint


def test_errors_are_also_what_a_python_user_expects():
    assert issubclass(ComponentLookupError, LookupError)
    assert issubclass(OptionError, TypeError)
    assert {error.exit_code for error in (MedvlError, ComponentLookupError, OptionError)} == {2}
