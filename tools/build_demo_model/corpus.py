"""Writes the text of the invented town from a seed: stories, questions, lists, records, letters.

The goal is a model that copies from its prompt: most names are invented for one document and never
used again, and every color occurs with every thing. No pretraining document has the form of the
demo task (`ticket`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from build_demo_model.vocabulary import (
    ANIMALS,
    CODAS,
    COLOURS,
    DAYS,
    FEELINGS,
    FIRST_NAMES,
    FOODS,
    ISSUES,
    JOBS,
    LABELS,
    OBJECTS,
    ONSETS,
    OPPOSITES,
    PLACES,
    SENSIBLE_WISHES,
    SHOP_ANSWERS,
    TICKET_LABELS,
    TOWN,
    UNKNOWN,
    VOWELS,
    WEATHER,
    WISHES,
)

Turn = tuple[str, str]
"""(role, text). The role `text` is plain text outside the chat template; `given` is its beginning,
which cannot be predicted."""

Document = list[Turn]


@dataclass(frozen=True)
class Fact:
    """A fact about a person: its key in `LABELS`, its value in a record, and its sentences."""

    key: str
    value: str
    sentence: str
    question: str
    answer: str


# ---------------------------------------------------------------- small pieces


def invented_word(rng: Random) -> str:
    """A pronounceable word of one to three syllables that is most likely in no other document."""
    syllables = rng.choice((1, 2, 2, 2, 2, 3))
    word = "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.4 else "")
        for _ in range(syllables)
    )
    return word if len(word) > 3 else word + rng.choice(("nar", "lo", "men", "tik", "sa"))


def simple_name(rng: Random) -> str:
    """An invented name that is easy on the eye: Tamor, Belina."""
    syllables = rng.choice((2, 2, 3))
    return (
        "".join(rng.choice("bdfghjklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))
        + rng.choice(("", "", "n", "r", "l", "s"))
    ).capitalize()


def person_name(rng: Random) -> str:
    """Mostly an invented name, sometimes a common one."""
    return rng.choice(
        (rng.choice(FIRST_NAMES), *[simple_name(rng)] * 2, *[invented_word(rng).capitalize()] * 2)
    )


def thing(rng: Random) -> str:
    """A color and an object, all pairs equally likely; sometimes the object is an invented word."""
    noun = invented_word(rng) if rng.random() < 0.1 else rng.choice(OBJECTS)
    return f"{rng.choice(COLOURS)} {noun}"


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def pick(rng: Random, options: str) -> str:
    """One of several wordings separated by `|`."""
    return rng.choice(options.split("|"))


def joined(words: list[str]) -> str:
    """`x, y and z`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# ---------------------------------------------------------------- facts about somebody


def facts_about(rng: Random, name: str) -> list[Fact]:
    """Everything one may say about a person, shuffled."""
    job, animal, pet, goods = (
        rng.choice(list(JOBS)),
        rng.choice(list(ANIMALS)),
        person_name(rng),
        thing(rng),
    )
    place, day, food, mate, number = (
        rng.choice(PLACES),
        rng.choice(DAYS),
        rng.choice(FOODS),
        person_name(rng),
        str(rng.randint(2, 9)),
    )
    colour, noun = goods.split()

    def say(options: str) -> str:
        return pick(rng, options)

    facts = [
        Fact("job", job, say(f"{name} is {a(job)}|{name} works as {a(job)}"),
            f"What is the job of {name}?", f"{name} is {a(job)}."),
        Fact("animal", animal,
            say(f"{name} has {a(animal)} called {pet}|{name} keeps {a(animal)} named {pet}"),
                *rng.choice((
            (f"Which animal does {name} have?", f"{name} has {a(animal)} called {pet}."),
            (f"What is the name of the {animal}?", f"The {animal} is called {pet}."),
            (f"Who is {pet}?", f"{pet} is the {animal} of {name}."),
        ))),
        Fact("thing", goods,
            say(f"{name} owns {a(goods)}|{name} bought {a(goods)}|{name} made {a(goods)}|{name} "
                f"found {a(goods)}"), *rng.choice((
            (f"Which colour is the {noun}?", f"The {noun} is {colour}."),
            (f"What does {name} have?", f"{name} has {a(goods)}."),
            (f"Who has the {goods}?", f"{name} has the {goods}."),
            (f"What is {colour}?", f"The {noun} is {colour}."),
        ))),
        Fact("place", place, say(f"{name} lives near {place}|the house of {name} is near {place}"),
            f"Where does {name} live?", f"{name} lives near {place}."),
        Fact("day", day, say(f"{name} rests on {day}|{name} comes to town on {day}"),
            f"Which day is for {name}?", f"It is {day}."),
        Fact("food", food, say(f"{name} likes {food}|{name} often eats {food}"),
            f"What does {name} like to eat?", f"{name} likes {food}."),
        Fact("mate", mate, say(f"{name} knows {mate}|{name} is a neighbour of {mate}"),
            f"Whom does {name} know?", f"{name} knows {mate}."),
        Fact("number", number, f"{name} carries {number} boxes",
            f"How many boxes does {name} carry?", f"{name} carries {number} boxes."),
    ]  # fmt: skip
    rng.shuffle(facts)
    return facts


def passage(rng: Random, facts: list[Fact], name: str) -> str:
    """The facts as running text; later sentences may say he or she."""
    pronoun = rng.choice(("He", "She"))
    sentences = [upper_first(facts[0].sentence)]
    for fact in facts[1:]:
        start = f"{name} "
        swap = fact.sentence.startswith(start) and rng.random() < 0.5
        sentences.append(
            f"{pronoun} {fact.sentence[len(start) :]}" if swap else upper_first(fact.sentence)
        )
    return " ".join(sentence + "." for sentence in sentences)


# ---------------------------------------------------------------- records in many forms


@dataclass(frozen=True)
class Form:
    """The form of a record: labels, and the text between label and value, fields, and around."""

    labels: tuple[str, ...]
    between: str
    join: str
    start: str = ""
    end: str = ""
    quote: str = ""

    def fill(self, values: list[str]) -> str:
        fields = [
            f"{self.quote}{label}{self.quote}{self.between}{self.quote}{value}{self.quote}"
            for label, value in zip(self.labels, values, strict=True)
        ]
        return self.start + self.join.join(fields) + self.end


def random_form(rng: Random, keys: list[str], by_example: bool = False) -> Form:
    """A form that was probably never used before.

    `by_example` allows labels that are made up or missing. Except in JSON, values follow a space,
    so a word has the same tokens in the text and in the record.
    """
    labels = [
        invented_word(rng) if by_example and rng.random() < 0.2 else rng.choice(LABELS[key])
        for key in keys
    ]
    while sum(label in TICKET_LABELS for label in labels) > 1 or len(set(labels)) < len(labels):
        labels = [rng.choice(LABELS[key]) for key in keys]
    case = rng.choice((str.lower, str.lower, str.capitalize, str.capitalize, str.upper))
    labels = [case(label) for label in labels]
    if rng.random() < 0.08:
        return Form(tuple(labels), ": ", ", ", "{", "}", '"')
    between = rng.choice((": ", ": ", ": ", " = ", " - ", " -> ", " is ", " | "))
    if by_example and rng.random() < 0.15:
        labels, between = [""] * len(keys), ""
    join = rng.choice(("\n", "\n", "\n", "\n- ", "; ", ", ", " | ", " / "))
    start, end = rng.choice(
        (
            ("", ""),
            ("", ""),
            ("", ""),
            ("( ", " )"),
            ("[ ", " ]"),
            ("{ ", " }"),
            ("Note:\n", ""),
            ("", "\nEnd"),
        )
    )
    return Form(tuple(labels), between, join, start + ("- " if join == "\n- " else ""), end)


# ---------------------------------------------------------------- letters to the shop


@dataclass(frozen=True)
class Complaint:
    """What a customer writes to the shop about, before it is put into words."""

    name: str
    goods: str
    issue: str
    wish: str


def complaint(rng: Random, name: str | None = None, goods: str | None = None) -> Complaint:
    issue = rng.choice(list(ISSUES))
    return Complaint(
        name or person_name(rng), goods or thing(rng), issue, rng.choice(SENSIBLE_WISHES[issue])
    )


def letter(rng: Random, case: Complaint, aside: str = "") -> str:
    """The customer's message: who, which thing, the problem and the request, in varying order.

    `aside` is one more sentence.
    """
    goods = a(case.goods)
    about = pick(
        rng,
        f"I bought {goods}|I ordered {goods}|I paid for {goods}|I bought {goods} on "
        f"{rng.choice(DAYS)}|I ordered {goods} last week|"
        f"I chose {goods} from your shop|I am writing about the {case.goods}|This is about the "
        f"{case.goods}|I have a question about my {case.goods}|"
        f"There is a problem with my {case.goods}|It is about my new {case.goods}|Please help "
        f"me with the {case.goods}",
    )
    issue, wish = pick(rng, ISSUES[case.issue][0]), pick(rng, WISHES[case.wish][0])
    body = (
        rng.choice(
            (f"{about}. {upper_first(issue)}.", f"{about} and {issue}.", f"{about}, but {issue}.")
        )
        + aside
    )
    wish = upper_first(wish) + ("?" if wish.startswith("can") else ".")
    hello = pick(rng, "Hello|Hi|Good day|Dear shop|Good morning|Hello shop")
    if rng.random() < 0.7:
        who = pick(
            rng,
            f"my name is {case.name}|I am {case.name}|this is {case.name}|{case.name} here|it "
            f"is {case.name}",
        )
        return f"{hello}, {who}. {body} {wish}"
    bye = pick(rng, "Thank you|Best wishes|Thanks|Greetings|Yours")
    return f"{hello}. {body} {wish} {bye}, {case.name}."


def aside(rng: Random) -> str:
    """Sometimes a sentence unrelated to the complaint, so that things must be told apart."""
    if rng.random() < 0.75:
        return ""
    mate, goods = person_name(rng), thing(rng)
    return pick(
        rng,
        f" My {goods} is fine.| {mate} has {a(goods)} too.| My friend {mate} likes your shop.| "
        f"The {goods} of {mate} is good.",
    )


def reply(rng: Random, case: Complaint) -> str:
    """The support desk's friendly answer."""
    start = pick(
        rng, f"Hello {case.name}|Dear {case.name}|Hi {case.name}|Thank you for writing, {case.name}"
    )
    sorry = pick(rng, "I am sorry that|we are sorry that|it is a pity that|I am sad to hear that")
    end = pick(rng, "| Have a nice day!| Thank you for your patience.| Best wishes from the shop.")
    return (
        f"{start}, {sorry} your {case.goods} {ISSUES[case.issue][1]}. {WISHES[case.wish][1]}.{end}"
    )


def ticket(case: Complaint) -> str:
    """The demo task's answer: four lines that only fine-tuning teaches."""
    return f"Customer: {case.name}\nItem: {case.goods}\nIssue: {case.issue}\nAction: {case.wish}"


def complaint_facts(case: Complaint) -> list[Fact]:
    """The complaint as facts, to ask about and to fill records with."""
    return [
        Fact("name", case.name, "", "Who wrote this?", f"{case.name} wrote this."),
        Fact("thing", case.goods, "", "What is it about?", f"It is about {a(case.goods)}."),
        Fact(
            "issue",
            case.issue,
            "",
            "What is wrong?",
            f"The {case.goods.split()[1]} {ISSUES[case.issue][1]}.",
        ),
        Fact(
            "wish",
            case.wish,
            "",
            "What should the shop do?",
            f"{WISHES[case.wish][1].replace('for you', '').strip()}.",
        ),
    ]


# ---------------------------------------------------------------- documents


def source_text(rng: Random) -> tuple[str, list[Fact]]:
    """A text to read, and the facts in it."""
    if rng.random() < 0.4:
        case = complaint(rng)
        return letter(rng, case, aside(rng)), complaint_facts(case)
    name = person_name(rng)
    facts = facts_about(rng, name)[: rng.randint(2, 5)]
    return passage(rng, facts, name), [
        Fact("name", name, "", "Who is this about?", f"It is about {name}."),
        *facts,
    ]


def event(rng: Random, hero: str, mate: str, goods: str) -> str:
    """What happened once: two to four sentences about two people and a thing."""
    noun, place, other, feeling = (
        goods.split()[1],
        rng.choice(PLACES),
        rng.choice(PLACES),
        rng.choice(FEELINGS),
    )
    return pick(
        rng,
        f"One day {hero} lost {a(goods)}. {hero} was very sad. {mate} looked for the {noun} "
        f"near {other} and found it.|"
        f"On the way to {place} {hero} found {a(goods)}. It belonged to {mate}, so {hero} "
        f"carried the {noun} to {other} and gave it back.|"
        f"{hero} wanted to buy {a(goods)}, but had no money. {mate} said: I will help you. They "
        f"worked together near {other} and bought the {noun}.|"
        f"{mate} came by with {a(goods)}. The {noun} was broken. {hero} repaired it, and {mate} "
        f"was {feeling} no more.|"
        f"It was {rng.choice(WEATHER)}, and {hero} was {feeling}. Then {mate} came from {other} "
        f"and brought {a(goods)} as a gift.|"
        f"{hero} carried {a(goods)} to {place}. There {hero} met {mate}, and they shared "
        f"{rng.choice(FOODS)}.|"
        f"{mate} asked: Have you seen my {goods}? {hero} said: Yes, the {noun} is near {place}. "
        "They went there together.|"
        f"On {rng.choice(DAYS)} {mate} sold {a(goods)} near {place}. {hero} liked the {noun} "
        "and took it home.",
    )


def story(rng: Random, hero: str | None = None, goods: str | None = None) -> str:
    """A short story of one or two events."""
    hero, goods, mate = hero or person_name(rng), goods or thing(rng), person_name(rng)
    job = rng.choice(list(JOBS))
    start = pick(
        rng,
        f"Once upon a time there was {a(job)} called {hero}. {hero} lived near "
        f"{rng.choice(PLACES)}.|In {TOWN} lived {a(job)} named {hero}.|"
        f"{hero} was {a(job)} in {TOWN}. Every {rng.choice(DAYS)} {hero} went to "
        f"{rng.choice(PLACES)}.|"
        f"One {rng.choice(WEATHER)} day {hero} the {job} walked to {rng.choice(PLACES)}.|{hero} "
        f"had {a(goods)} and a friend called {mate}.",
    )
    events = [event(rng, hero, mate, goods)]
    if rng.random() < 0.3:
        events.append(event(rng, hero, mate, thing(rng)))
    end = pick(
        rng,
        f"{hero} thanked {mate}. In the evening they ate {rng.choice(FOODS)} together.|From "
        f"that day on {hero} and {mate} were friends.|"
        f"{mate} smiled, and {hero} went home with the {goods}.|{hero} never forgot the "
        f"{goods}.|They were both happy, and they sang until night.",
    )
    return " ".join((start, *events, end))


def story_document(rng: Random) -> Document:
    return [("text", story(rng))]


def asked_story(rng: Random) -> Document:
    """A story about what the user names."""
    name, goods = person_name(rng), thing(rng)
    ask = pick(
        rng,
        f"Tell me a story about {name} and {a(goods)}.|Write a short story about {name} and "
        f"{a(goods)}.|Please tell me about {name} and the {goods}.|"
        f"Tell me a story about {name}.|Tell me a story.",
    )
    if goods not in ask:
        goods = thing(rng)
    return [("user", ask), ("assistant", story(rng, name if name in ask else None, goods))]


def reading_document(rng: Random) -> Document:
    """A passage, then one to three questions about it."""
    text, facts = source_text(rng)
    asked = rng.sample(facts, min(len(facts), rng.randint(1, 3)))
    place_text = rng.choice(
        (
            "{text} {question}",
            "{text}\n\n{question}",
            "{question}\n\n{text}",
            "Text: {text} Question: {question}",
        )
    )
    turns: Document = []
    for i, fact in enumerate(asked):
        question = place_text.format(text=text, question=fact.question) if i == 0 else fact.question
        turns += [
            ("user", question),
            ("assistant", fact.answer if rng.random() < 0.8 else upper_first(fact.value) + "."),
        ]
    return turns


def yes_or_no(rng: Random) -> Document:
    """A claim about a passage that is right or has one value changed."""
    name = person_name(rng)
    facts = facts_about(rng, name)[:3]
    fact = rng.choice(facts)
    other = next(f for f in facts_about(rng, name) if f.key == fact.key)
    claim = fact if rng.random() < 0.5 else other
    verdict = "Yes" if claim.value == fact.value else "No"
    return [
        ("user", f"{passage(rng, facts, name)} Is this true: {claim.sentence}?"),
        ("assistant", f"{verdict}. {fact.answer}"),
    ]


def described_record(rng: Random) -> Document:
    """The prompt shows an empty form; the answer is the filled form."""
    return filled_form(rng, *source_text(rng))


def letter_record(rng: Random) -> Document:
    """A filled form again, always from a letter to the shop."""
    case = complaint(rng)
    return filled_form(rng, letter(rng, case, aside(rng)), complaint_facts(case))


def filled_form(rng: Random, text: str, facts: list[Fact]) -> Document:
    chosen = rng.sample(facts, min(len(facts), rng.randint(2, 4)))
    form = random_form(rng, [fact.key for fact in chosen])
    empty = form.fill(["..."] * len(chosen))
    ask = rng.choice((
        f"{text}\n\nFill in:\n{empty}",
        f"Fill in this form from the text.\n{empty}\n\n{text}",
        f"Form:\n{empty}\nText: {text}",
        f"{text} Write it like this:\n{empty}",
    ))  # fmt: skip
    return [("user", ask), ("assistant", form.fill([fact.value for fact in chosen]))]


def shown_records(rng: Random) -> Document:
    """Several messages and their records in one form, which the first record shows."""
    letters = rng.random() < 0.6
    turns: Document = [
        (
            "system",
            pick(
                rng,
                "Turn each message into a note.|Write records.|Make notes in one form.|Sort the "
                "messages.",
            ),
        )
    ]
    form, keys = None, None
    for _ in range(rng.randint(2, 4)):
        if letters:
            case = complaint(rng)
            text, facts = letter(rng, case, aside(rng)), complaint_facts(case)
        else:
            name = person_name(rng)
            about = sorted(facts_about(rng, name), key=lambda fact: fact.key)
            text, facts = "", [Fact("name", name, "", "", ""), *about]
        keys = keys or rng.sample([fact.key for fact in facts], rng.randint(2, 4))
        form = form or random_form(rng, keys, by_example=True)
        by_key = {fact.key: fact for fact in facts}
        if not letters:
            told = [by_key[key] for key in keys if key != "name"]
            rng.shuffle(told)
            text = passage(rng, told, by_key["name"].value)
        turns += [("user", text), ("assistant", form.fill([by_key[key].value for key in keys]))]
    return turns


def record_to_words(rng: Random) -> Document:
    """A record in any form, and a question about one field or a sentence for each."""
    name = person_name(rng)
    facts = facts_about(rng, name)[: rng.randint(2, 4)]
    form = random_form(rng, ["name", *(fact.key for fact in facts)])
    record = form.fill([name, *(fact.value for fact in facts)])
    i = rng.randrange(len(facts))
    if rng.random() < 0.5 and form.labels[i + 1]:
        return [
            ("user", f"{record}\n\nWhat is the {form.labels[i + 1]}?"),
            ("assistant", upper_first(facts[i].value) + "."),
        ]
    return [
        ("user", f"{record}\n\nSay it in words."),
        ("assistant", f"{name}: {joined([fact.value for fact in facts])}."),
    ]


def random_item(rng: Random) -> str:
    """Something to copy: a name, a thing, an invented word, a word of the town or one digit."""
    kind = rng.randrange(6)
    if kind == 0:
        return person_name(rng)
    if kind in (1, 2):
        return thing(rng)
    if kind == 3:
        return invented_word(rng)
    return (
        rng.choice(FOODS + DAYS + list(JOBS) + OBJECTS + COLOURS)
        if kind == 4
        else str(rng.randint(1, 9))
    )


def list_document(rng: Random) -> Document:
    """Repeat a list, or take one item out of it."""
    items = [random_item(rng) for _ in range(rng.randint(1, 7))]
    i = rng.randrange(len(items))
    shown = rng.choice((", ", "; ", " | ", " / ", " and ")).join(items)
    bullets = "\n".join(f"- {item}" for item in items)
    tasks = [
        (
            pick(
                rng,
                f"Repeat: {shown}|Say this again: {shown}|Copy this: {shown}|{shown}. Please "
                "repeat.",
            ),
            shown,
        ),
        (f"Make a list: {shown}", bullets),
        (f"Join these:\n{bullets}", joined(items)),
        (f"What comes first? List: {shown}", items[0]),
        (f"What comes last? List: {shown}", items[-1]),
        (f"Say {items[i]} twice.", f"{items[i]} {items[i]}"),
        (f"Write a line with {items[i]} and {items[0]}.", f"Here are {items[i]} and {items[0]}."),
    ]
    if len(set(items)) == len(items) > 1:
        i = rng.randrange(1, len(items))
        tasks += [
            (f"What comes after {items[i - 1]}? List: {shown}", items[i]),
            (
                f"Leave out {items[i]}: {joined(items)}",
                joined([item for item in items if item != items[i]]),
            ),
        ]
    ask, answer = rng.choice(tasks)
    return [("user", ask), ("assistant", answer)]


def repeated_text(rng: Random) -> Document:
    """Plain text in which a random list occurs again and again: the shortest lesson in copying."""
    items = [random_item(rng) for _ in range(rng.randint(2, 12))]
    once = rng.choice((" ", ", ", " ; ", "\n", " and ")).join(items)
    between = rng.choice((" . ", "\n", " ; "))
    return [("given", f" {once}{between}"), ("text", between.join([once] * rng.randint(1, 2)))]


def change_document(rng: Random) -> Document:
    """Change one word of a sentence and leave the rest."""
    name = person_name(rng)
    fact = rng.choice(
        [
            fact
            for fact in facts_about(rng, name)
            if fact.key in ("thing", "food", "mate", "place", "day")
        ]
    )
    new = {
        "thing": thing(rng),
        "food": rng.choice(FOODS),
        "mate": person_name(rng),
        "place": rng.choice(PLACES),
        "day": rng.choice(DAYS),
    }[fact.key]
    old_words, new_words = (
        (fact.value, new) if fact.key != "thing" else (fact.value.split()[1], new.split()[1])
    )
    if rng.random() < 0.4:
        old_words, new_words = name, person_name(rng)
    ask = pick(rng, f"Put {new_words} instead of {old_words}|Change {old_words} to {new_words}")
    return [
        ("user", f"{ask}: {upper_first(fact.sentence)}."),
        ("assistant", upper_first(fact.sentence).replace(old_words, new_words) + "."),
    ]


def sentence_document(rng: Random) -> Document:
    """A sentence that holds the words asked for."""
    name, goods, place = person_name(rng), thing(rng), rng.choice(PLACES)
    ask = pick(
        rng,
        f"Write a sentence about {name} and {a(goods)}.|Write a sentence with: {name}, {goods}, "
        f"{place}.|Use these words: {goods}, {name}.",
    )
    answer = pick(rng, f"{name} has {a(goods)}.|{name} carries {a(goods)}.|{name} sees {a(goods)}.")
    if place in ask:
        answer = f"{answer[:-1]} near {place}."
    return [("user", ask), ("assistant", answer)]


def support_document(rng: Random) -> Document:
    """A letter to the shop and the friendly answer; sometimes a short talk after it."""
    case = complaint(rng)
    turns: Document = (
        [
            (
                "system",
                pick(rng, "You work in the shop.|You are the support desk.|Answer as the shop."),
            )
        ]
        if rng.random() < 0.3
        else []
    )
    turns += [("user", letter(rng, case, aside(rng))), ("assistant", reply(rng, case))]
    if rng.random() < 0.3:
        fact = rng.choice(complaint_facts(case)[:2])
        again = {
            "name": ("Do you know my name?", f"Yes, your name is {case.name}."),
            "thing": ("Which thing was it?", f"It was the {case.goods}."),
        }[fact.key]
        thanks = (
            pick(rng, "Thank you!|Thanks a lot.|That is good."),
            pick(rng, f"You are welcome, {case.name}.|Goodbye, {case.name}!"),
        )
        ask, answer = rng.choice((again, thanks))
        turns += [("user", ask), ("assistant", answer)]
    return turns


def small_talk(rng: Random) -> Document:
    """Greetings and what everybody in town knows."""
    name, job, animal = person_name(rng), rng.choice(list(JOBS)), rng.choice(list(ANIMALS))
    day, word, unknown = rng.randrange(7), rng.choice(list(OPPOSITES)), rng.choice(UNKNOWN)
    ask, answer = rng.choice((
        (f"Hello, I am {name}.", f"Hello {name}, nice to meet you. How can I help you?"),
        (f"Hi! My name is {name}. What is my name?", f"Your name is {name}."),
        (pick(rng, "Hello!|Hi|Good morning."), "Hello! How can I help you?"),
        ("Who are you?", f"I am a small language model, and I know the town of {TOWN}."),
        (f"What does {a(job)} do?", f"{upper_first(a(job))} {JOBS[job]}."),
        (f"What does {a(animal)} do?", f"{upper_first(a(animal))} {ANIMALS[animal]}."),
        (f"Which day comes after {DAYS[day]}?", f"After {DAYS[day]} comes {DAYS[(day + 1) % 7]}."),
        (f"Which day comes before {DAYS[day]}?", f"Before {DAYS[day]} comes {DAYS[day - 1]}."),
        (f"What is the opposite of {word}?", f"The opposite of {word} is {OPPOSITES[word]}."),
        ("How is the weather?", f"It is {rng.choice(WEATHER)} in {TOWN} today."),
        ("What can I buy in the shop?",
            f"You can buy {a(thing(rng))}, {a(thing(rng))} or {a(thing(rng))}."),
        *[rng.choice(list(SHOP_ANSWERS.items()))] * 4,
        (pick(rng, f"What do you know about {unknown}?|Tell me about {unknown}."),
            f"I do not know much about {unknown}. I only know {TOWN}."),
        ("Where can I walk?", f"You can walk to {rng.choice(PLACES)} or to {rng.choice(PLACES)}."),
    ))  # fmt: skip
    return [("user", ask), ("assistant", answer)]


RECIPE: list[tuple[float, Callable[[Random], Document]]] = [
    (5, story_document),
    (4, asked_story),
    (12, reading_document),
    (2, yes_or_no),
    (8, described_record),
    (16, letter_record),
    (4, shown_records),
    (3, record_to_words),
    (12, list_document),
    (6, repeated_text),
    (4, change_document),
    (3, sentence_document),
    (20, support_document),
    (5, small_talk),
]
"""How often each kind of document is written."""


def documents(seed: int) -> Iterator[Document]:
    """Pretraining documents without end; the same seed gives the same documents."""
    rng = Random(seed)
    weights, writers = zip(*RECIPE, strict=True)
    while True:
        yield rng.choices(writers, weights)[0](rng)


def ticket_rows(seed: int, num_train: int, num_held_out: int) -> tuple[list[dict], list[dict]]:
    """Training and held-out rows of the demo task, without common customers or pairs."""
    rng = Random(seed)
    names: dict[str, None] = {}
    while len(names) < num_train + num_held_out:
        names[simple_name(rng)] = None
    pairs = [f"{colour} {noun}" for colour in COLOURS for noun in OBJECTS]
    goods = rng.sample(pairs, num_train + num_held_out)
    rows = []
    for name, item in zip(names, goods, strict=True):
        case = complaint(rng, name, item)
        rows.append({"instruction": letter(rng, case), "output": ticket(case)})
    return rows[:num_train], rows[num_train:]
