# reason: medvl_losses gave 2 components called 'same'; names are unique within a plugin and kind
from medvl_core.hookspecs import hookimpl
from medvl_core.specs import LossSpec

MEDVL_API = "1.0"


@hookimpl
def medvl_losses():
    return [LossSpec(name="same", factory="a:b", summary="fine", source="medvl", license="MIT")] * 2
