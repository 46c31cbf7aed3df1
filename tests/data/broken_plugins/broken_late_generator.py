# reason: ZeroDivisionError: division by zero
from medvl_core.hookspecs import hookimpl
from medvl_core.specs import PoolingSpec

MEDVL_API = "1.0"


@hookimpl
def medvl_poolings():
    yield PoolingSpec(name="fine", factory="a:b", summary="fine", source="medvl", license="MIT", scope="global")
    yield 1 / 0
