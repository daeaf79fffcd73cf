"A chapter seen as one room, for tests and benchmarks that look behind its public names or replace them."
import importlib
import pkgutil


class Chapter:
    """Names of all modules of a package; what is set is set in every module that knows the name, and deleting it
    undoes that."""
    def __init__(self, package):
        root = importlib.import_module(package)
        modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(root.__path__)]
        vars(self).update(modules=modules, kept={})

    def __getattr__(self, name):
        for module in self.modules:
            if name in vars(module):
                return getattr(module, name)
        raise AttributeError(f"no module of the chapter has {name!r}")

    def __setattr__(self, name, value):
        knowing = [module for module in self.modules if name in vars(module)]
        self.kept.setdefault(name, [(module, getattr(module, name)) for module in knowing])
        for module in knowing:
            setattr(module, name, value)

    def __delattr__(self, name):
        for module, value in self.kept[name]:
            setattr(module, name, value)
