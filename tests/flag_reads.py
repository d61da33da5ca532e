"""Follows a script's flags through its syntax tree, to those that something reads.

It begins where `run_script` is called, and goes from function to function as far as
they are called or handed on, and into `keras_mae` where the flags themselves, or an
object that keeps them, are handed over. A name in a comment, a text or a function that
nothing calls is no read; neither is an attribute of the same name of something else,
nor a check that does nothing but refuse a value.
"""

import ast
import dataclasses
import functools

from tests.scripts import ROOT

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.Lambda)


class Module:
    """A module's functions, classes and imports by name."""

    def __init__(self, text):
        self.tree = ast.parse(text)
        self.items, self.imports, self.libraries = {}, {}, set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.libraries |= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = alias.asname or alias.name
                    self.imports[name] = (node.module, alias.name)
        for node in self.tree.body:
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                self.items[node.name] = node

    def find(self, name):
        """Finds a function or class, here or where it is imported from."""
        if name in self.items:
            return self, self.items[name]
        source, original = self.imports.get(name, ("", None))
        module = package_module(source)
        return module.find(original) if module else None


@functools.cache
def package_module(name):
    """Reads a module of keras_mae; any other is `None`."""
    if name.split(".")[0] != "keras_mae":
        return None
    path = ROOT / name.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return Module(path.read_text()) if path.exists() else None


def bases(module, item):
    """Lists a class and the classes it is made of, with their modules."""
    found = [(module, item)]
    for base in item.bases:
        parent = isinstance(base, ast.Name) and module.find(base.id)
        if parent:
            found += bases(*parent)
    return found


def methods(module, item):
    """Lists the functions of a class and its bases by name."""
    return {
        node.name: (owner, node)
        for owner, part in reversed(bases(module, item))
        for node in part.body
        if isinstance(node, _FUNCTIONS)
    }


@dataclasses.dataclass
class Flags:
    """What is known of a script's flags.

    Attributes:
        fields: Dict from each flag's name to its syntax.
        reads: Set of names that are read.
    """

    script: Module
    fields: dict
    methods: dict
    reads: set = dataclasses.field(default_factory=set)
    # classes that were given the flags, and the attributes that keep them
    holders: list = dataclasses.field(default_factory=list)
    kept: set = dataclasses.field(default_factory=set)
    seen: dict = dataclasses.field(default_factory=dict)

    @property
    def unread(self):
        return set(self.fields) - self.reads

    @property
    def unexplained(self):
        """Set of flags of which `--help` would say nothing."""

        def text(call):
            return ast.literal_eval(call.args[0]) if not _is_joined(call) else "f"

        return {
            name
            for name, value in self.fields.items()
            if not (isinstance(value, ast.Call) and value.args and text(value).strip())
        }


def _is_joined(call):
    return isinstance(call.args[0], ast.JoinedStr)


def read_script(text):
    """Analyses the text of a script.

    Args:
        text: Str, the script.

    Returns:
        A `Flags`.
    """
    module = Module(text)
    (call,) = (
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and "run_script" in ast.unparse(node.func)
    )
    owner, config = module.find(call.args[1].id)
    fields = {
        node.target.id: node.value
        for _, part in reversed(bases(owner, config))
        for node in part.body
        if isinstance(node, ast.AnnAssign)
    }
    flags = Flags(module, fields, methods(owner, config))
    # parse_flags itself reads --config
    flags.reads.add("config")
    while True:
        before = (len(flags.reads), len(flags.kept), len(flags.holders))
        flags.seen.clear()
        _Scope(flags, module, {}).visit(call.args[0])
        # a later function may have kept what an earlier one reads
        if before == (len(flags.reads), len(flags.kept), len(flags.holders)):
            return flags


class _Scope(ast.NodeVisitor):
    """Walks through one function.

    Args:
        flags: The `Flags`.
        module: The `Module` that it stands in.
        names: Dict from the names it knows to what they hold: `"flags"`, or a list of
            texts that a loop goes through.
    """

    def __init__(self, flags, module, names):
        self.flags, self.module, self.names = flags, module, dict(names)
        self.returns_flags = False

    def is_flags(self, node):
        if isinstance(node, ast.Name):
            return self.names.get(node.id) == "flags"
        if isinstance(node, ast.Attribute):
            library = ast.unparse(node.value) in self.module.libraries
            kept = node.attr in self.flags.kept and not library
            return kept and not self.is_flags(node.value)
        if not isinstance(node, ast.Call):
            return False
        if ast.unparse(node.func) == "dataclasses.replace":
            return self.is_flags(node.args[0])
        if isinstance(node.func, ast.Attribute) and self.is_flags(node.func.value):
            return self.method(node.func.attr)
        return self.enter(node)

    def texts(self, node):
        """Lists the texts of a tuple, also behind a star or a name."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, (ast.Tuple, ast.List)):
            return [text for part in node.elts for text in self.texts(part)]
        if isinstance(node, ast.Starred):
            return self.texts(node.value)
        known = isinstance(node, ast.Name) and self.names.get(node.id)
        return known if isinstance(known, list) else []

    def bind(self, target, value):
        """Gives names what is assigned to them."""
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, one in zip(target.elts, value.elts, strict=True):
                self.bind(part, one)
        elif isinstance(target, ast.Name):
            held = "flags" if self.is_flags(value) else self.texts(value)
            self.names[target.id] = held
        elif isinstance(target, ast.Attribute) and self.is_flags(value):
            self.flags.kept.add(target.attr)

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)

    def visit_For(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehensions(self, node):
        for generator in node.generators:
            self.bind(generator.target, generator.iter)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_comprehensions
    visit_GeneratorExp = visit_comprehensions

    def visit_If(self, node):
        # what only refuses values makes no use of them
        if all(isinstance(part, ast.Raise) for part in node.body):
            for part in node.orelse:
                self.visit(part)
        else:
            self.generic_visit(node)

    def visit_Return(self, node):
        self.generic_visit(node)
        if node.value is not None and self.is_flags(node.value):
            self.returns_flags = True

    def visit_inner(self, node):
        """A function in a function knows the names around it."""
        inner = _Scope(self.flags, self.module, self.names)
        for name in _parameters(node):
            inner.names.pop(name, None)
        body = node.body if isinstance(node.body, list) else [node.body]
        for part in body:
            inner.visit(part)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_inner

    def visit_Name(self, node):
        """A function of the script that is handed on is called somewhere."""
        if node.id in self.names or not isinstance(node.ctx, ast.Load):
            return
        item = self.flags.script.items.get(node.id)
        if self.module is self.flags.script and isinstance(item, _FUNCTIONS):
            given = {name: "flags" for name in _parameters(item) if name == "config"}
            self.walk(self.module, item, given)

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if self.is_flags(node.value) and isinstance(node.ctx, ast.Load):
            if node.attr not in self.flags.methods:
                self.flags.reads.add(node.attr)
            self.method(node.attr)
            return
        for module, item in list(self.flags.holders):
            found = methods(module, item).get(node.attr)
            if found:
                self.walk(*found, {})

    def visit_Call(self, node):
        if ast.unparse(node.func) == "getattr" and self.is_flags(node.args[0]):
            self.flags.reads.update(self.texts(node.args[1]))
        self.enter(node)
        # the function is no value that is handed on
        if not isinstance(node.func, ast.Name):
            self.visit(node.func)
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def method(self, name):
        """Walks through a method of the flags; says whether it returns flags."""
        found = self.flags.methods.get(name)
        return bool(found) and self.walk(*found, {"self": "flags"})

    def enter(self, call):
        """Walks through what is called; says whether it returns flags."""
        module, item = self.called(call.func) or (None, None)
        if isinstance(item, ast.ClassDef):
            init = methods(module, item).get("__init__")
            if init is None:
                return False
            given = self.given(call, init[1], skip=1)
            if given and (module, item) not in self.flags.holders:
                self.flags.holders.append((module, item))
            return bool(given) and self.walk(*init, given) and False
        if isinstance(item, _FUNCTIONS):
            given = self.given(call, item, skip=_parameters(item)[:1] == ["self"])
            if given or module is self.flags.script:
                return self.walk(module, item, given)
        return False

    def called(self, function):
        """Finds the function or class that is called, if it is ours."""
        if isinstance(function, ast.Name):
            return self.module.find(function.id)
        if not isinstance(function, ast.Attribute):
            return None
        if isinstance(function.value, ast.Name):
            source = self.module.imports.get(function.value.id)
            module = source and package_module(".".join(source))
            if module:
                return module.find(function.attr)
        for module, item in self.flags.holders:
            parts = [methods(*base) for base in bases(module, item)]
            own = ast.unparse(function.value) == "super()"
            for part in parts[1:] if own else parts:
                if function.attr in part:
                    return part[function.attr]
        return None

    def given(self, call, function, skip):
        """Says which parameters of a function are given the flags."""
        names = _parameters(function)[int(skip) :]
        pairs = [*zip(names, call.args, strict=False)]
        pairs += [(keyword.arg, keyword.value) for keyword in call.keywords]
        return {name: "flags" for name, value in pairs if self.is_flags(value)}

    def walk(self, module, function, given):
        """Walks through a function once for each way of giving it the flags."""
        key = (function, *sorted(given))
        if key not in self.flags.seen:
            self.flags.seen[key] = False
            scope = _Scope(self.flags, module, given)
            for part in function.body:
                scope.visit(part)
            self.flags.seen[key] = scope.returns_flags
        return self.flags.seen[key]


def _parameters(function):
    return [argument.arg for argument in function.args.args]
