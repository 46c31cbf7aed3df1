# reason: ModuleNotFoundError: No module named 'a_library_nobody_has'
import a_library_nobody_has  # noqa: F401

MEDVL_API = "1.0"
