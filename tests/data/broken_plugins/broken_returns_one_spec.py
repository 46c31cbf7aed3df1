# reason: medvl_losses returned LossSpec; it must return a list of LossSpec
from medvl_core.hookspecs import hookimpl
from medvl_core.specs import LossSpec

MEDVL_API = "1.0"


@hookimpl
def medvl_losses():
    return LossSpec(name="fine", factory="a:b", summary="fine", source="medvl", license="MIT")
