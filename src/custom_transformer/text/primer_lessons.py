"""What the primer can say: its tables of words and the sentences of its lessons.

This file is nearly all data. A table is a list of `Word`s, whose columns are attributes, so a sentence may say
`{country.capital}`. A `Kind` of lesson names the facts that one lesson is about and gives its sentences in order;
the lines of a paragraph below are alternative wordings of one passage, of which a lesson uses one.

Two rules keep the grammar unambiguous (`tests/text/test_primer.py` checks both by going through every passage):
- a fact is first mentioned in one passage, the same for all wordings, and so fully that the reader knows it there;
- none of the strings that a passage can become, given the facts already known, is the beginning of another.
So a reader can tell passage by passage which choices were made, and no two chains of choices give the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product


class Word(str):
    """An entry of a table: it prints as itself, and its columns are attributes that are Words too."""

    def __new__(cls, text: str, **columns: str) -> Word:
        word = super().__new__(cls, text)
        word.__dict__.update((k, v if isinstance(v, Word) else Word(v)) for k, v in columns.items())
        return word

    def __getattr__(self, column: str) -> Word:  # called only for missing attributes
        raise AttributeError(f"{str(self)!r} has no column {column!r}")

    @property
    def cap(self) -> str:
        """As a sentence begins: 'ice' -> 'Ice'."""
        return self[0].upper() + self[1:]

    @property
    def a(self) -> str:
        """With its article: 'a dog', 'an owl'."""
        return f"{'an' if self[0] in 'aeio' else 'a'} {self}"

    @property
    def A(self) -> str:
        """With its article, as a sentence begins: 'A dog', 'An owl'."""
        return self.a[0].upper() + self.a[1:]


Table = Sequence[Word]


@dataclass(frozen=True)
class Given:
    """A fact whose table depends on an earlier fact: `choices` has a table for each value of `fact`."""

    fact: str
    choices: Mapping[Word, Table]


@dataclass(frozen=True)
class Kind:
    """A kind of lesson: the facts that it draws, in order, and the alternative wordings of each passage."""

    name: str
    facts: Mapping[str, Table | Given]
    passages: tuple[tuple[str, ...], ...]


def table(columns: str, /, **links: Table) -> Callable[[str], Table]:
    """Makes the Words of a text: rows separated by semicolons, cells by commas. `links` maps columns to the tables that
    they refer to."""
    names = columns.split(", ")[1:]

    def words(rows: str) -> Table:
        made = []
        for row in rows.split(";"):
            first, *cells = (cell.strip() for cell in row.split(","))
            linked = {n: links[n][links[n].index(c)] if n in links else c for n, c in zip(names, cells, strict=True)}
            made.append(Word(first, **linked))
        return made

    return words


def given(fact: str, base: Table, choices: Table, fits: Callable[[Word, Word], bool]) -> Given:
    """For each value of `fact` (a Word of `base`) the `choices` that fit it."""
    return Given(fact, {value: [c for c in choices if fits(value, c)] for value in base})


def other(fact: str, base: Table) -> Given:
    """Any Word of `base` except the one that `fact` holds."""
    return given(fact, base, base, lambda value, choice: value != choice)


def kind(name: str, /, **facts: Table | Given) -> Callable[[str], Kind]:
    """Makes a Kind of its text: empty lines separate passages, and each alternative wording is one line."""

    def with_text(text: str) -> Kind:
        passages = (tuple(" ".join(line.split()) for line in p.strip().splitlines()) for p in text.split("\n\n"))
        return Kind(name, facts, tuple(passages))

    return with_text


# ---- numbers, and what is never said about them -------------------------------------------------------------------

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
TERMS = range(1, 10)  # what is added, and what is taken away
COMPARED = range(1, 13)


def is_held_out(x: int, y: int) -> bool:
    """The fixed rule by which about a tenth of the sums x + y and of the comparisons of x and y are never stated."""
    return (x * x + 3 * y) % 11 == 3


def sum_is_held_out(a: int, b: int) -> bool:
    """Whether no lesson says what a + b is, in that order. Sums with one are all said, since counting implies them."""
    return a > 1 and b > 1 and is_held_out(a, b)


def _sum(a: int, b: int) -> Word:
    first, second, total = NUMBERS[a], NUMBERS[b], NUMBERS[a + b]
    return Word(f"{first} plus {second}", first=first, second=second, total=total, turned=f"{second} plus {first}")


def _difference(a: int, b: int) -> Word:
    first, second, rest = NUMBERS[a], NUMBERS[b], NUMBERS[a - b]
    return Word(f"{first} minus {second}", first=first, second=second, rest=rest)


def _compared(small: str, big: str) -> Word:
    return Word(f"{small} {big}", small=small, big=big)


def _of_several(facts: Table) -> Table:
    """For stories, which cannot say "one shells"."""
    return [fact for fact in facts if "one" not in vars(fact).values()]


HELD_OUT_SUMS = [(a, b) for a, b in product(TERMS, repeat=2) if sum_is_held_out(a, b)]
HELD_OUT_NUMBER_PAIRS = [(x, y) for x, y in combinations(COMPARED, 2) if is_held_out(x, y)]
SUMS = [_sum(a, b) for a, b in product(TERMS, repeat=2) if not sum_is_held_out(a, b)]
TURNED_SUMS = [_sum(a, b) for a, b in permutations(TERMS, 2) if not sum_is_held_out(a, b) and not sum_is_held_out(b, a)]
DIFFERENCES = [_difference(a + b, b) for a, b in product(TERMS, repeat=2) if a + b <= 10 and not sum_is_held_out(a, b)]
NUMBER_PAIRS = [_compared(NUMBERS[x], NUMBERS[y]) for x, y in combinations(COMPARED, 2) if not is_held_out(x, y)]
COUNTS = [
    Word(NUMBERS[n], before=NUMBERS[n - 1], second=NUMBERS[n + 1], third=NUMBERS[n + 2], fourth=NUMBERS[n + 3])
    for n in range(2, 10)
]

BY_SIZE = [
    Word(name) for name in ["ant", "bee", "mouse", "rabbit", "dog", "sheep", "lion", "horse", "elephant", "whale"]
]
SIZE_PAIRS = [
    _compared(small, big) for (x, small), (y, big) in combinations(enumerate(BY_SIZE, 1), 2) if not is_held_out(x, y)
]
HELD_OUT_SIZE_PAIRS = [pair for pair in combinations(BY_SIZE, 2) if _compared(*pair) not in SIZE_PAIRS]
# The animals that are smaller than both of a pair, where both comparisons may be said.
SMALLER = {
    pair: smaller
    for pair in SIZE_PAIRS
    if (smaller := [w for w in BY_SIZE if {_compared(w, pair.small), _compared(w, pair.big)} <= set(SIZE_PAIRS)])
}

# ---- words ----------------------------------------------------------------------------------------------------------

CHILDREN = table("name, he, him, his")("""
    Anna, she, her, her; Emma, she, her, her; Kate, she, her, her; Rosa, she, her, her;
    Ben, he, him, his; Jack, he, him, his; Leo, he, him, his; Tom, he, him, his
""")
FRIEND = other("child", CHILDREN)
THINGS = [Word(thing, many=f"{thing}s") for thing in "apple nut egg shell stone book cup button".split()]
COLOURS = [Word(colour) for colour in "red blue green yellow brown black white pink".split()]
TOYS = [Word(toy) for toy in "ball kite doll drum boat train lamp bag".split()]
PLACES = table("place")("""
    on the table; under the bed; behind the door; in the kitchen; in the garden; on the shelf;
    under the stairs; by the fire
""")

ACTIVITIES = table("do, does")("""
    bake bread, bakes bread; play chess, plays chess; feed the birds, feeds the birds;
    swim in the lake, swims in the lake; ride a pony, rides a pony; paint pictures, paints pictures;
    cook soup, cooks soup; write letters, writes letters
""")

DAYS = table("day, before, next")("""
    Monday, Sunday, Tuesday; Tuesday, Monday, Wednesday; Wednesday, Tuesday, Thursday;
    Thursday, Wednesday, Friday; Friday, Thursday, Saturday; Saturday, Friday, Sunday;
    Sunday, Saturday, Monday
""")

SEASONS = table("season, sign")("""
    winter, the days are short and cold; spring, the trees grow new leaves;
    summer, the days are long and warm; autumn, the leaves fall from the trees
""")
MONTHS = table("month, place, season, before, next", season=SEASONS)("""
    January, first, winter, December, February; February, second, winter, January, March;
    March, third, spring, February, April; April, fourth, spring, March, May;
    May, fifth, spring, April, June; June, sixth, summer, May, July; July, seventh, summer, June, August;
    August, eighth, summer, July, September; September, ninth, autumn, August, October;
    October, tenth, autumn, September, November; November, eleventh, autumn, October, December;
    December, twelfth, winter, November, January
""")

GROUPS = table("group, many, has, have")("""
    mammal, mammals, feeds its young with milk, feed their young with milk;
    bird, birds, has feathers and a beak, have feathers and a beak;
    fish, fish, has fins and breathes with gills, have fins and breathe with gills;
    reptile, reptiles, has dry skin with scales, have dry skin with scales;
    insect, insects, has six legs, have six legs
""")
ANIMALS = table("animal, group", group=GROUPS)("""
    dog, mammal; cat, mammal; horse, mammal; whale, mammal; owl, bird; eagle, bird; swan, bird;
    penguin, bird; shark, fish; salmon, fish; trout, fish; snake, reptile; lizard, reptile;
    turtle, reptile; ant, insect; bee, insect; beetle, insect; butterfly, insect
""")

PARENTS = table("animal, young, sound")("""
    dog, puppy, barks; cat, kitten, meows; cow, calf, moos; sheep, lamb, bleats; horse, foal, neighs;
    hen, chick, clucks; duck, duckling, quacks; goose, gosling, honks; pig, piglet, grunts;
    lion, cub, roars; owl, owlet, hoots; frog, tadpole, croaks
""")

COUNTRIES = table("country, capital, continent")("""
    France, Paris, Europe; Spain, Madrid, Europe; Italy, Rome, Europe; Germany, Berlin, Europe;
    Norway, Oslo, Europe; Greece, Athens, Europe; Japan, Tokyo, Asia; India, New Delhi, Asia;
    China, Beijing, Asia; Nepal, Kathmandu, Asia; Egypt, Cairo, Africa; Kenya, Nairobi, Africa;
    Ghana, Accra, Africa; Peru, Lima, South America; Chile, Santiago, South America;
    Canada, Ottawa, North America
""")

# Each line gives two Words, one for either direction.
OPPOSITES = [
    Word(word, opposite=opposite, example=example, counter=counter)
    for line in """
        hot, cold, a fire, snow
        big, small, a castle, a button
        long, short, a river, a match
        fast, slow, a hare, a snail
        hard, soft, a stone, a pillow
        wet, dry, rain, dust
        loud, quiet, a drum, a whisper
        high, low, a mountain, a valley
        strong, weak, an ox, a baby
        sharp, blunt, a needle, a spoon
        old, young, a grandmother, a child
        bright, dark, the day, the night
    """.strip().splitlines()
    for first, second, one, two in [[cell.strip() for cell in line.split(",")]]
    for word, opposite, example, counter in ((first, second, one, two), (second, first, two, one))
]

OBJECTS = table("object, colour")("""
    grass, green; a frog, green; a leaf, green; snow, white; milk, white; coal, black; a raven, black;
    a lemon, yellow; a tomato, red; a cherry, red; a carrot, orange; a pumpkin, orange;
    a plum, purple; an elephant, grey; a flamingo, pink; chocolate, brown
""")
MIXES = table("mix, colour")("""
    red and yellow, orange; yellow and red, orange; blue and yellow, green; yellow and blue, green;
    red and blue, purple; blue and red, purple; black and white, grey; white and black, grey;
    red and white, pink; white and red, pink; red and green, brown; green and red, brown
""")

CHANGES = table("change, matter, state, verb, when, result, deed")("""
    water freezes, water, a liquid, freezes, gets very cold, solid ice, puts a cup of water into the freezer;
    water boils, water, a liquid, boils, gets very hot, a gas called steam, heats a pot of water on the stove;
    steam condenses, steam, a gas, condenses, cools down, liquid water, holds a cold plate over the steam;
    ice melts, ice, a solid, melts, gets warm, liquid water, leaves some ice in the sun;
    snow melts, snow, a solid, melts, gets warm, liquid water, carries some snow into a warm room;
    butter melts, butter, a solid, melts, gets warm, liquid butter, leaves some butter near the fire;
    wax melts, wax, a solid, melts, gets warm, liquid wax, lights a candle and looks at the wax;
    chocolate melts, chocolate, a solid, melts, gets warm, liquid chocolate, warms some chocolate in a bowl
""")

PARTS = table("part, job")("""
    root, takes up water from the ground; fruit, holds the seeds; seed, can grow into a new plant;
    flower, makes the seeds
""")
PLANTS = table("plant, part", part=PARTS)("""
    carrot, root; radish, root; turnip, root; beet, root; apple, fruit; pear, fruit; cherry, fruit;
    plum, fruit; bean, seed; pea, seed; lentil, seed; chestnut, seed; tulip, flower; rose, flower;
    daisy, flower; lily, flower
""")

SHAPES = table("shape, sides")("""
    triangle, three; square, four; rectangle, four; pentagon, five; hexagon, six; heptagon, seven;
    octagon, eight; decagon, ten
""")

TOOLS = table("tool, use")("""
    hammer, drive in a nail; saw, cut a board; knife, slice the bread; spoon, eat soup;
    needle, sew on a button; broom, sweep the floor; key, open the lock; clock, tell the time;
    pen, sign a letter; ladder, climb onto the roof; spade, dig a hole; comb, tidy the hair
""")

SENSES = table("sense, does, organ")("""
    see, sees, eyes; hear, hears, ears; smell, smells, nose; taste, tastes, tongue; feel, feels, skin
""")
SENSATIONS = table("thing, sense", sense=SENSES)("""
    a rainbow, see; the full moon, see; a painting, see; a church bell, hear; thunder, hear; a song, hear;
    perfume, smell; smoke, smell; fresh hay, smell; honey, taste; salty soup, taste; sweet jam, taste;
    a soft pillow, feel; the cold wind, feel; warm sand, feel
""")

PLURALS = table("word, many, rule")("""
    tree, trees, we add an s; chair, chairs, we add an s; boat, boats, we add an s;
    box, boxes, we add es; dish, dishes, we add es; fox, foxes, we add es;
    baby, babies, the y turns into ies; cherry, cherries, the y turns into ies;
    pony, ponies, the y turns into ies; leaf, leaves, the f turns into a v;
    wolf, wolves, the f turns into a v; shelf, shelves, the f turns into a v;
    mouse, mice, the word itself changes; goose, geese, the word itself changes;
    foot, feet, the word itself changes; sheep, sheep, nothing changes; deer, deer, nothing changes
""")

RELATIVES = [
    Word(f"{relation} of your {link}", relation=relation, link=link, name=name, he=he, him=him)
    for links, relation, name, he, him in (
        ("mother father", "mother", "grandmother", "she", "her"),
        ("mother father", "father", "grandfather", "he", "him"),
        ("mother father", "sister", "aunt", "she", "her"),
        ("mother father", "brother", "uncle", "he", "him"),
        ("aunt uncle", "daughter", "cousin", "she", "her"),
        ("aunt uncle", "son", "cousin", "he", "him"),
    )
    for link in links.split()
]

# ---- lessons --------------------------------------------------------------------------------------------------------

KINDS = (
    kind("counting", n=COUNTS, child=CHILDREN, thing=THINGS, m=COUNTS)("""
        Let us count from {n}: {n}, {n.second}, {n.third}, {n.fourth}.
        {n.cap}, {n.second}, {n.third}, {n.fourth}: this is how we count.
        Say these numbers aloud: {n}, {n.second}, {n.third}, {n.fourth}.

        After {n} comes {n.second}, and before {n} comes {n.before}.
        The number after {n} is {n.second}, and the number before {n} is {n.before}.
        {n.before.cap} comes before {n}, and {n.second} comes after it.

        {child} looks into {child.his} basket and counts {m} {thing.many}.
        {child} puts {m} {thing.many} in a row and counts them.
        {child} has {m} {thing.many} in a box.

        Then {child.he} finds one more. How many does {child.he} have now?
        Then {child.he} gets one more from a friend. How many does {child.he} have now?

        {child.he.cap} has {m.second}, because {m.second} comes after {m}.
        The number after {m} is {m.second}, so now {child.he} has {m.second} of them.

        Each number is one more than the number before it.
        When we count, we leave no number out.
        We count to find out how many there are.
    """),
    kind("sums", sum=SUMS, child=CHILDREN, friend=FRIEND, thing=THINGS, s=_of_several(SUMS))("""
        {sum.cap} is {sum.total}.
        How much is {sum}? {sum.cap} is {sum.total}.
        Let us add {sum.first} and {sum.second}. {sum.cap} is {sum.total}.

        To add is to put numbers together.
        We add when we want to know how many there are in all.
        The answer of a sum is called its total.

        {child} has {s.first} {thing.many}, and {friend} has {s.second}.
        {child} finds {s.first} {thing.many}, and {friend} finds {s.second}.
        {child} puts {s.first} {thing.many} on the table. {friend} brings {s.second} more.

        How many are there together? {s.cap} is {s.total}, so there are {s.total} of them.
        They put all of them into a bag and count. The bag holds {s.total}, because {s} is {s.total}.
        How many {thing.many} are there in all? There are {s.total}, because {s} is {s.total}.

        Now you can do sums like these yourself.
        We can count them all to see that the answer is right.
    """),
    kind("turned sums", t=TURNED_SUMS, child=CHILDREN, friend=FRIEND, thing=THINGS, u=_of_several(TURNED_SUMS))("""
        We may turn a sum around, and the total stays the same.
        The order of the numbers does not matter when we add.
        A sum has the same total when it is turned around.

        {t.cap} is {t.total}, and {t.turned} is {t.total} too.
        If {t} is {t.total}, then {t.turned} must be {t.total} too.
        Because {t} is {t.total}, we know that {t.turned} is also {t.total}.

        {child} has {u.first} {thing.many} and gets {u.second} more. {friend} has {u.second} and gets {u.first} more.
        {child} finds {u.first} {thing.many} and then {u.second}. {friend} finds {u.second} of them and then {u.first}.

        Who has more now? Nobody has more, because {u} is {u.total}, and {u.turned} is {u.total} too.
        Now both have the same number, because {u} is {u.total}, and {u.turned} is {u.total} too.
    """),
    kind("differences", d=DIFFERENCES, child=CHILDREN, friend=FRIEND, thing=THINGS, e=_of_several(DIFFERENCES))("""
        {d.cap} is {d.rest}.
        How much is {d}? {d.cap} is {d.rest}.
        Let us take {d.second} from {d.first}. {d.cap} is {d.rest}.

        To subtract is to take away.
        Taking something away makes a number smaller.
        We subtract when we want to know how many are left.

        {child} has {e.first} {thing.many} and gives {e.second} of them to {friend}.
        {child} puts {e.first} {thing.many} on a plate, and {friend} takes {e.second} of them.
        {child} had {e.first} {thing.many}, but lost {e.second} of them on the way to {friend}.

        How many are left? {e.cap} is {e.rest}, so {e.rest} of them are left.
        How many {thing.many} are there now? There are {e.rest}, because {e} is {e.rest}.

        A difference can never be greater than the number we began with.
        If we put back what we took away, we have the first number again.
    """),
    kind("comparisons", p=NUMBER_PAIRS, child=CHILDREN, friend=FRIEND, thing=THINGS, q=_of_several(NUMBER_PAIRS))("""
        {p.big.cap} is greater than {p.small}.
        {p.small.cap} is less than {p.big}.

        When we count, {p.small} comes before {p.big}.
        When we count, {p.big} comes after {p.small}.
        We say {p.small} before we say {p.big} when we count.

        {child} has {q.big} {thing.many}, and {friend} has {q.small}. Who has more? \
            {child} has more, because {q.big} is greater than {q.small}.
        {child} has {q.small} {thing.many}, and {friend} has {q.big}. Who has more? \
            {friend} has more, because {q.big} is greater than {q.small}.
        {child} has {q.big} {thing.many}, and {friend} has {q.small}. Who has fewer? \
            {friend} has fewer, because {q.small} is less than {q.big}.
        {child} has {q.small} {thing.many}, and {friend} has {q.big}. Who has fewer? \
            {child} has fewer, because {q.small} is less than {q.big}.

        Of two numbers, the greater one comes later when we count.
        The further we count, the greater the numbers become.
        This is how we compare two numbers.
    """),
    kind(
        "sizes",
        pair=list(SMALLER),
        least=Given("pair", SMALLER),
        child=CHILDREN,
        colour=COLOURS,
        tint=other("colour", COLOURS),
    )("""
        {pair.big.A} is bigger than {pair.small.a}.
        {pair.small.A} is smaller than {pair.big.a}.

        {pair.small.A} is bigger than {least.a}.
        {least.A} is smaller than {pair.small.a}.

        So {pair.big.a} is bigger than {least.a} too.
        So {least.a} is smaller than {pair.big.a} too.

        {child} draws these three animals. {child.he.cap} paints the biggest one {colour} and the smallest one {tint}.
        {child} has a picture of these three animals. The biggest one is {colour}, and the smallest one is {tint}.

        What colour is the {pair.big}? It is {colour}, because the {pair.big} is the biggest of the three.
        What colour is the {least}? It is {tint}, because the {least} is the smallest of the three.
        Which animal is {colour}? It is the {pair.big}, because the {pair.big} is the biggest of the three.
        Which animal is {tint}? It is the {least}, because the {least} is the smallest of the three.
    """),
    kind("days", day=DAYS, child=CHILDREN, activity=ACTIVITIES, when=DAYS)("""
        A week has seven days.
        There are seven days in a week.
        Every week has the same seven days.

        After {day} comes {day.next}, and before {day} comes {day.before}.
        The day after {day} is {day.next}, and the day before {day} is {day.before}.
        {day} comes after {day.before} and before {day.next}.

        {child} {activity.does} every {when}.
        Every {when} {child} {activity.does}.
        {when} is the day on which {child} {activity.does}.

        Today is {when.before}. When will {child} {activity}? Tomorrow, because tomorrow is {when}.
        Yesterday was {when.before}. When will {child} {activity}? Today, because today is {when}.
        Today is {when.next}. When did {child} last {activity}? Yesterday, because yesterday was {when}.
        Tomorrow is {when.next}. When will {child} {activity}? Today, because today is {when}.

        Then the week goes on, and the days come round again.
        When the seven days are over, a new week begins.
    """),
    kind("months", month=MONTHS, child=CHILDREN, friend=FRIEND, birth=MONTHS)("""
        {month} is the {month.place} month of the year.
        The {month.place} month of the year is {month}.
        A year has twelve months, and {month} is the {month.place} of them.

        It comes after {month.before} and before {month.next}.
        Before it comes {month.before}, and after it comes {month.next}.

        In the north, {month} belongs to {month.season}, when {month.season.sign}.
        In the north it is then {month.season}, and {month.season.sign}.

        {child} lives in the north and was born in {birth}. {friend} asks in which season that is.
        {child} and {friend} live in the north. {child} has {child.his} birthday in {birth}. Which season is it then?

        It is {birth.season}, because {birth} is one of the months of {birth.season}.
        It is {birth.season}, when {birth.season.sign}.

        The four seasons are winter, spring, summer and autumn.
        Three months make a season, and four seasons make a year.
    """),
    kind(
        "animals",
        animal=ANIMALS,
        peer=given("animal", ANIMALS, ANIMALS, lambda x, y: x.group == y.group and x != y),
        stranger=given("animal", ANIMALS, ANIMALS, lambda x, y: x.group != y.group),
        child=CHILDREN,
        place=PLACES,
    )("""
        {animal.A} is {animal.group.a}.
        What is {animal.a}? It is {animal.group.a}.
        Let us learn about the {animal}. {animal.A} is {animal.group.a}.

        Like all {animal.group.many}, it {animal.group.has}.
        It {animal.group.has}, as {animal.group.many} do.
        We know this because it {animal.group.has}.

        {peer.A} is {animal.group.a} too.
        Another {animal.group} is the {peer}.

        But {stranger.a} is not {animal.group.a}.
        {stranger.A} is not like them.

        {child} reads about it {place}. The book says that it {stranger.group.has}, so it is {stranger.group.a}.
        {child} has a book about it {place}. It says that it is {stranger.group.a}, because it {stranger.group.has}.
    """),
    kind("young animals", animal=PARENTS, child=CHILDREN, friend=FRIEND, guess=other("animal", PARENTS))("""
        A young {animal} is called {animal.young.a}.
        {animal.young.A} is a young {animal}.
        The young of {animal.a} is called {animal.young.a}.

        When {animal.young.a} grows up, it becomes {animal.a}.
        One day {animal.young.a} will be {animal.a}.

        {animal.A} {animal.sound}.
        You can tell {animal.a} by its voice: it {animal.sound}.

        {child} and {friend} play a game. {child} makes the sound of an animal that {guess.sound}. \
            {friend} says that it is {guess.a}.
        {child} plays a game with {friend}. {child} thinks of an animal that {guess.sound}. \
            {friend} says that it is {guess.a}.

        That is right, because {guess.a} {guess.sound}.
        {friend} is right, and {child} asks what its young is called. It is called {guess.young.a}.
        Then {friend} asks what {guess.young.a} is. {child} knows the answer: it is a young {guess}.
    """),
    kind("capitals", country=COUNTRIES, away=other("country", COUNTRIES), child=CHILDREN, friend=FRIEND)("""
        The capital of {country} is {country.capital}.
        {country.capital} is the capital of {country}.
        Every country has a capital. The capital of {country} is {country.capital}.

        {country} is a country in {country.continent}.
        {country} lies in {country.continent}.
        We find {country} on the map of {country.continent}.

        Another country is {away}. It lies in {away.continent}, and its capital is {away.capital}.
        The capital of {away}, a country in {away.continent}, is {away.capital}.

        {child} is in {country.capital}, and {friend} is in {away.capital}.
        {child} travels to {country.capital}, but {friend} travels to {away.capital}.
        {child} lives in {away.capital}, and {friend} lives in {country.capital}.
        {child} writes a letter from {away.capital}, and {friend} reads it in {country.capital}.

        Who is in {country}? It is the one who is in {country.capital}.
        Which of the two cities is the capital of {away}? It is {away.capital}.
        Which of the two cities lies in {country}? It is {country.capital}.
    """),
    kind(
        "opposites",
        word=OPPOSITES,
        child=CHILDREN,
        friend=FRIEND,
        next=given("word", OPPOSITES, OPPOSITES, lambda x, y: y not in (x, x.opposite)),
    )("""
        The opposite of {word} is {word.opposite}.
        {word.cap} is the opposite of {word.opposite}.
        {word.cap} and {word.opposite} are opposites.

        {word.example.cap} is {word}, but {word.counter} is {word.opposite}.
        {word.counter.cap} is {word.opposite}, but {word.example} is {word}.

        {child} says that {next.example} is {next}. {friend} looks for the opposite.
        {child} thinks of {next.example} and says that it is {next}. {friend} must find the opposite.

        What does {friend} say? {friend.he.cap} says that {next.counter} is {next.opposite}.
        {friend.he.cap} thinks of {next.counter} and says that it is {next.opposite}.
        The opposite of {next} is {next.opposite}, so {friend} thinks of {next.counter}.

        Many words have an opposite.
        So we learn two words at once.
        It is good to know a word and its opposite.
    """),
    kind(
        "colours",
        object=OBJECTS,
        odd=given("object", OBJECTS, OBJECTS, lambda x, y: x.colour != y.colour),
        child=CHILDREN,
        mix=MIXES,
        picture=given("mix", MIXES, OBJECTS, lambda x, y: x.colour == y.colour),
    )("""
        {object.cap} is {object.colour}.
        What colour is {object}? It is {object.colour}.
        The colour of {object} is {object.colour}.

        But {odd} is not {object.colour}: it is {odd.colour}.
        {odd.cap} has another colour: it is {odd.colour}.

        {child} mixes {mix} paint and gets {mix.colour}.
        {child} has no {mix.colour} paint, so {child.he} mixes {mix}.
        When {child} mixes {mix}, {child.he} gets {mix.colour} paint.

        With this paint {child.he} can paint {picture}, because {picture} is {mix.colour}.
        What can {child.he} paint with it? {child.he.cap} can paint {picture}, which is {mix.colour}.

        Two colours together can make a third.
        There are colours wherever we look.
    """),
    kind("melting and freezing", c=CHANGES, child=CHILDREN, d=other("c", CHANGES))("""
        When {c.matter} {c.when}, it {c.verb}.
        {c.matter.cap} {c.verb} when it {c.when}.
        What happens when {c.matter} {c.when}? It {c.verb}.

        It was {c.state} before, and it turns into {c.result}.
        {c.matter.cap} is {c.state}, but now it becomes {c.result}.

        {child} stays at home and wants to see something change. {child.he.cap} {d.deed}.
        {child} wants to learn more. {child.he.cap} {d.deed}.
        One day {child} {d.deed}.

        The {d.matter} {d.when}, so it {d.verb} and becomes {d.result}.
        What happens to the {d.matter}? It {d.when}, so it {d.verb} and becomes {d.result}.

        Heat and cold can change things.
        Things can be solid, liquid or a gas.
    """),
    kind(
        "plants",
        plant=PLANTS,
        odd=given("plant", PLANTS, PLANTS, lambda x, y: x.part != y.part),
        child=CHILDREN,
        friend=FRIEND,
        place=PLACES,
    )("""
        {plant.A} is the {plant.part} of a plant.
        What is {plant.a}? It is the {plant.part} of a plant.
        A plant has many parts, and {plant.a} is a {plant.part}.

        The {plant.part} {plant.part.job}.
        Every {plant.part} has its work: it {plant.part.job}.

        {child} finds {odd.a} {place} and shows it to {friend}.
        {child} and {friend} find {odd.a} {place}.

        It is not a {plant.part}. What is it? It is a {odd.part}, and a {odd.part} {odd.part.job}.
        Is it a {plant.part} too? No, it is a {odd.part}, which {odd.part.job}.

        Plants need light, air and water.
        Without water a plant cannot grow.
        All plants need the light of the sun.
    """),
    kind(
        "shapes",
        shape=SHAPES,
        child=CHILDREN,
        first=SHAPES,
        second=other("first", SHAPES),
        colour=COLOURS,
        tint=other("colour", COLOURS),
    )("""
        {shape.A} has {shape.sides} sides.
        How many sides does {shape.a} have? It has {shape.sides} sides.
        A shape with {shape.sides} sides may be {shape.a}.

        It has {shape.sides} corners as well.
        Where two sides meet there is a corner, so it has {shape.sides} corners.

        {child} draws {colour.a} {first} and {tint.a} {second}.
        {child} cuts {colour.a} {first} and {tint.a} {second} out of paper.
        {child} has a picture of {colour.a} {first} and {tint.a} {second}.

        How many sides does the {colour} shape have? It is {first.a}, so it has {first.sides} sides.
        How many corners does the {tint} shape have? It is {second.a}, so it has {second.sides} corners.
        Which shape has {first.sides} sides and is {colour}? It is the {first}.
        Which shape is {tint} and has {second.sides} sides? It is the {second}.

        To know a shape, count its sides.
        Shapes are all around us.
    """),
    kind("tools", tool=TOOLS, child=CHILDREN, friend=FRIEND, first=TOOLS, second=other("first", TOOLS))("""
        We use {tool.a} to {tool.use}.
        {tool.A} helps us to {tool.use}.
        With {tool.a} we can {tool.use}.

        {child} has {first.a}, and {friend} has {second.a}.
        {child} brings {first.a}, and {friend} brings {second.a}.
        {child} carries {first.a}, but {friend} carries {second.a}.

        Who can {first.use}? {child} can, because {first.a} is made to {first.use}.
        Who can {second.use}? {friend} can, because {second.a} is made to {second.use}.
        {child} wants to {second.use}. What must {child.he} borrow? {child.he.cap} must borrow the {second} of {friend}.
        {friend} wants to {first.use}. What must {friend.he} borrow? {friend.he.cap} must borrow the {first} of {child}.

        Every tool has its work.
        A good tool makes work easy.
        After work we put our tools away.
    """),
    kind(
        "senses",
        sense=SENSES,
        child=CHILDREN,
        x=SENSATIONS,
        friend=FRIEND,
        y=given("x", SENSATIONS, SENSATIONS, lambda x, y: x.sense != y.sense),
    )("""
        We {sense} with our {sense.organ}.
        With our {sense.organ} we can {sense}.
        We have five senses, and we {sense} with our {sense.organ}.

        {child} {x.sense.does} {x}, and {friend} {y.sense.does} {y}.
        One morning {child} {x.sense.does} {x}. At the same time {friend} {y.sense.does} {y}.
        First {child} {x.sense.does} {x}. Then {friend} {y.sense.does} {y}.

        What does {child} use for this? {child.he.cap} uses {child.his} {x.sense.organ}, \
            because we {x.sense} with our {x.sense.organ}.
        What does {friend} use for this? {friend.he.cap} uses {friend.his} {y.sense.organ}, \
            because we {y.sense} with our {y.sense.organ}.
        Who uses the {x.sense.organ}? {child} does, because we {x.sense} with our {x.sense.organ}.
        Who uses the {y.sense.organ}? {friend} does, because we {y.sense} with our {y.sense.organ}.

        Our senses tell us about the world.
        We should take good care of our senses.
        Seeing, hearing, smelling, tasting and feeling are the five senses.
    """),
    kind("plurals", word=PLURALS, child=CHILDREN, friend=FRIEND, next=other("word", PLURALS), n=COUNTS)("""
        One {word}, two {word.many}.
        The plural of {word} is {word.many}.
        We say one {word}, but many {word.many}.

        In this plural {word.rule}.
        To make this plural, we remember that {word.rule}.

        {child} draws one {next}, and {friend} draws {n} of them. What has {friend} drawn?
        {child} sees one {next}, but {friend} sees {n} of them. What does {friend} see?
        {child} dreams of one {next}, and {friend} dreams of {n} of them. What is the dream of {friend} about?

        The answer is {n} {next.many}, for in this plural {next.rule}.
        It is {n} {next.many}. Here {next.rule}.

        A plural is used for more than one.
        When there are more than one, we use the plural.
    """),
    kind("family", k=RELATIVES, child=CHILDREN, activity=ACTIVITIES, m=other("k", RELATIVES), day=DAYS)("""
        The {k.relation} of your {k.link} is your {k.name}.
        Who is the {k.relation} of your {k.link}? {k.he.cap} is your {k.name}.
        If {k.he} is the {k.relation} of your {k.link}, {k.he} is your {k.name}.

        A family is made of many people.
        Some families are big, and some are small.
        In a family people help each other.

        On {day} {child} will {activity} with the {m.relation} of {child.his} {m.link}.
        The {m.relation} of the {m.link} of {child} comes on {day}, and they {activity} together.

        Who is this visitor? It is the {m.name} of {child}, because {m.he} is the {m.relation} of {child.his} {m.link}.
        What does {child} call this visitor? {child.he.cap} calls {m.him} {child.his} {m.name}.

        They will meet again soon.
        It will be a happy day for both of them.
    """),
    kind(
        "swaps",
        child=CHILDREN,
        friend=FRIEND,
        toy=TOYS,
        thing=other("toy", TOYS),
        colour=COLOURS,
        tint=other("colour", COLOURS),
    )("""
        {child} has {colour.a} {toy}, and {friend} has {tint.a} {thing}.
        Listen and remember: {child} has {colour.a} {toy}, and {friend} has {tint.a} {thing}.
        {child} has got {colour.a} {toy}. {friend} has got {tint.a} {thing}.

        What colour is the {toy}? It is {colour}.
        What colour is the {thing}? It is {tint}.
        Who has the {toy}? {child} has it.
        Who has the {thing}? {friend} has it.

        Then they swap. Now {child} has the {tint} {thing}, and {friend} has the {colour} {toy}.
        Then {child} gives the {toy} to {friend} and gets the {thing} for it. Now {friend} has the {toy}.
        Then {friend} gives the {thing} to {child} and gets the {toy} for it. Now {child} has the {thing}.

        Both are glad, for it is good to share.
        They thank each other and play until evening.
        They will swap again tomorrow.
    """),
    kind(
        "places",
        child=CHILDREN,
        toy=TOYS,
        thing=other("toy", TOYS),
        place=PLACES,
        spot=other("place", PLACES),
        friend=FRIEND,
    )("""
        {child} leaves the {toy} {place} and the {thing} {spot}.
        {child} has a {toy} and a {thing}. The {toy} is {place}, and the {thing} is {spot}.
        There is a {toy} {place}, and there is a {thing} {spot}. Both belong to {child}.

        {friend} wants to play with the {toy}. Where should {friend.he} look? {friend.he.cap} should look {place}.
        {friend} wants to play with the {thing}. Where should {friend.he} look? {friend.he.cap} should look {spot}.
        {friend} comes to visit and looks {place}. What does {friend.he} find there? {friend.he.cap} finds the {toy}.
        {friend} comes to visit and looks {spot}. What does {friend.he} find there? {friend.he.cap} finds the {thing}.

        Things are easy to find when they have a place.
        When we remember where things are, we need not search.
        At the end of the day everything goes back to its place.
    """),
)
