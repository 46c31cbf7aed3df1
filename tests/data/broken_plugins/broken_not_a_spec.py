# reason: medvl_encoders gave dict; it must give EncoderSpec
from medvl_core.hookspecs import hookimpl

MEDVL_API = "1.0"


@hookimpl
def medvl_encoders():
    return [{"name": "vit", "factory": "a:b"}]
