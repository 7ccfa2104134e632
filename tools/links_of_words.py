"""Links nobody has to write: from a chapter's code words to the package's reference, from its terms to the glossary.

Roles would do the same, and would stand as raw text in JupyterLab. So the first time that a page says ``nl.integrate``
or *kinetic energy*, the word becomes a link as the page is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.util.nodes import make_refnode

REFERENCE = "book/api/"
GLOSSARY = "book/glossary"
FOREIGN = {"torch", "numpy", "scipy", "collections", "typing", "pathlib", "matplotlib", "ipywidgets", "inspect"}
FOREIGN |= {"Module", "Path"}
CLOSED = (nodes.reference, nodes.title, nodes.literal, nodes.math, nodes.math_block, nodes.literal_block, nodes.raw)


def public_objects(env) -> dict[str, tuple[str, str]]:
    """The documented names of the package by their last part: the page and the place on it."""
    found: dict[str, tuple[str, str]] = {}
    for name, entry in env.get_domain("py").objects.items():
        if entry.docname.startswith(REFERENCE):
            parts = name.split(".")
            for start in range(1, len(parts)):
                found.setdefault(".".join(parts[start:]), (entry.docname, entry.node_id))
    return found


def resolve(app, env, node, contnode):
    """A docstring's reference: a public name by its last parts; what belongs to other packages stays plain text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    place = public_objects(env).get(target.removeprefix("nlcompanion."))
    if place is not None:
        return make_refnode(app.builder, node["refdoc"], *place, contnode)
    return contnode if is_no_public_name(node, target) else None


def is_no_public_name(node, target: str) -> bool:
    """What was never meant as a link into this book: other packages, words that the reader of docstrings takes for
    types, the full paths of types in signatures."""
    words = node["reftype"] == "class" and not re.fullmatch(r"[A-Z]\w*(\.\w+)*", target.removeprefix("nlcompanion."))
    return words or target.split(".")[0] in FOREIGN


def terms(env) -> dict[str, str]:
    """The glossary's terms and their places."""
    objects = env.get_domain("std").objects.items()
    return {name: place for (kind, name), (page, place) in objects if kind == "term" and page == GLOSSARY}


def link_words(app, doctree, docname: str) -> None:
    """Link the first use of each public name and of each term on a page of the book."""
    if not docname.startswith("book/") or docname.startswith(REFERENCE) or docname == GLOSSARY:
        return
    link_code(app, doctree, docname)
    link_terms(app, doctree, docname)


def link_code(app, doctree, docname: str) -> None:
    places = public_objects(app.env)
    done = set()
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removeprefix("nlcompanion.").removeprefix("nl.").removesuffix("()")
        if name in places and name not in done and not within(literal, (nodes.reference, nodes.title)):
            done.add(name)
            literal.replace_self(make_refnode(app.builder, docname, *places[name], literal.deepcopy()))


def link_terms(app, doctree, docname: str) -> None:
    known = terms(app.env)
    for text in list(open_texts(doctree)):
        if not known:
            return
        words = "|".join(re.escape(term) for term in sorted(known, key=len, reverse=True))
        found = re.search(rf"\b({words})(e?s)?\b", text.astext(), flags=re.IGNORECASE)
        if found:
            spelt = {term.lower(): term for term in known}[found[1].lower()]
            before, word, after = text.astext()[: found.start()], found[0], text.astext()[found.end() :]
            link = make_refnode(app.builder, docname, GLOSSARY, known.pop(spelt), nodes.inline(word, word))
            link["classes"].append("nl-term")
            text.parent.replace(text, [nodes.Text(before), link, nodes.Text(after)])


def open_texts(doctree) -> Iterator[nodes.Text]:
    """Running text: no headings, no links, no code, no formulas."""
    for paragraph in doctree.findall(nodes.paragraph):
        for text in paragraph.findall(nodes.Text):
            if not within(text, CLOSED):
                yield text


def within(node, kinds: tuple[type, ...]) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def setup(app) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_words)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
