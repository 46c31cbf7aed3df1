# reason: ValueError: component name 'My Loss' is not lower snake case
from medvl_core.hookspecs import hookimpl
from medvl_core.specs import LossSpec

MEDVL_API = "1.0"


@hookimpl
def medvl_losses():
    return [LossSpec(name="My Loss", factory="a:b", summary="fine", source="medvl", license="MIT")]
