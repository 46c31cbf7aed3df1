# reason: medvl_losses returned None; it must return a list of LossSpec
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_losses():
    pass
