# reason: medvl_encoders is not decorated with @hookimpl
MEDVL_API = "1.0"


def medvl_encoders():
    return []
