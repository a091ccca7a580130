"""The verdict as JUnit XML, which CI systems show beside their tests: one case a gate.

A gate that failed is a failure; one that is inconclusive is an error, for it could not be judged. Both are red.
"""

from __future__ import annotations

from xml.etree import ElementTree

from ..records.parity import Parity
from . import words

_QUESTION_OF = {"export_max_abs": "export", "decode_max_abs": "export", "regression": "against"}


def junit(parity: Parity) -> str:
    """One suite, named after the checkpoint; its cases are classed by the section of parity.json they judge."""
    gates, source = parity.gates, parity.source
    suite = ElementTree.Element(
        "testsuite",
        name=_text(f"{source.name} at {source.revision}"),
        tests=str(len(gates)),
        failures=str(sum(gate.outcome == "failed" for gate in gates)),
        errors=str(sum(gate.outcome == "inconclusive" for gate in gates)),
        skipped="0",
        time=f"{parity.seconds:.2f}",
        timestamp=parity.created.removesuffix("Z"),
    )
    facts = {
        "source.commit": source.commit,
        "corpus.source": parity.corpus.source,
        "corpus.sha256": parity.corpus.sha256,
        "machine": parity.machine,
    } | {f"version.{package}": version for package, version in parity.versions.items()}
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=_text(name), value=_text(str(value)))
    look = {"export": words.look_in_graph(parity), "cost": words.look_in_weights(parity)}
    for gate in gates:
        question = _QUESTION_OF.get(gate.name, "cost")
        # The whole proof made all of them: a time of one gate alone would be invented.
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"pythia-export.{question}", name=gate.name, time="0"
        )
        said = words.gate_sentence(gate)
        if gate.outcome in ("failed", "inconclusive"):
            kind = "failure" if gate.outcome == "failed" else "error"
            found = ElementTree.SubElement(case, kind, type=gate.outcome, message=_text(said))
            found.text = _text("\n".join(line for line in (said, look.get(question, look["cost"])) if line))
        ElementTree.SubElement(case, "system-out").text = _text(said)
    suites = ElementTree.Element("testsuites", name="pythia-export parity")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def junit_of_error(what: str, kind: str, message: str, hint: str) -> str:
    """One suite with one case, an error: what a CI system shows where no verdict came of it."""
    suites = ElementTree.Element("testsuites", name="pythia-export parity")
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    suite = ElementTree.SubElement(suites, "testsuite", counts, name=_text(what))
    case = ElementTree.SubElement(suite, "testcase", name=_text(what), classname="pythia-export")
    found = ElementTree.SubElement(case, "error", type=kind, message=_text(message))
    found.text = _text("\n".join(line for line in (message, hint) if line))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _text(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold, escaped or not."""
    return "".join(c if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff") else "\ufffd" for c in text)
