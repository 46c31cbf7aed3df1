# reason: PluginValidationError
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_encoders(config):
    return []
