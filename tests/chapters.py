"A chapter seen as one room, for tests and benchmarks that look behind its public names or replace them."
import importlib
import pkgutil


class Chapter:
    "Names of all modules of a package; what is set is set in every module that knows the name."
    def __init__(self, package):
        root = importlib.import_module(package)
        modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(root.__path__)]
        object.__setattr__(self, "modules", modules)

    def __getattr__(self, name):
        for module in self.modules:
            if name in vars(module):
                return getattr(module, name)
        raise AttributeError(f"no module of the chapter has {name!r}")

    def __setattr__(self, name, value):
        for module in self.modules:
            if name in vars(module):
                setattr(module, name, value)
