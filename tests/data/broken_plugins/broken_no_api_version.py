# reason: MEDVL_API is None; write MEDVL_API = "1.0" in the plugin module
from medvl_core.hookspecs import hookimpl


@hookimpl
def medvl_encoders():
    return []
