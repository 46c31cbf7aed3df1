# reason: medvl_poolings gave LossSpec; it must give PoolingSpec
from medvl_core.hookspecs import hookimpl
from medvl_core.specs import LossSpec

MEDVL_API = "1.0"


@hookimpl
def medvl_poolings():
    return [LossSpec(name="fine", factory="a:b", summary="fine", source="medvl", license="MIT")]
