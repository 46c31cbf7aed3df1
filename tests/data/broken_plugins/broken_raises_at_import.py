# reason: RuntimeError: no licence file found
raise RuntimeError("no licence file found")
