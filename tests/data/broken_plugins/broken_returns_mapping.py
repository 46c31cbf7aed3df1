# reason: medvl_datasets returned dict; it must return a list of DatasetSpec
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_datasets():
    return {"name": "cohort"}
