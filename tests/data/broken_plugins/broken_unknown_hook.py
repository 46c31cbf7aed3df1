# reason: medvl_encoder is not a hook; did you mean 'medvl_encoders'?
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_encoder():
    return []
