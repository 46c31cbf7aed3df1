# reason: MEDVL_API is 2.3 but this medvl has 1.0; the major versions must match
from medvl_core.hookspecs import hookimpl

MEDVL_API = "2.3"


@hookimpl
def medvl_encoders():
    return []
