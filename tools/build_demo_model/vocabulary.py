"""The words of the invented town, as lists.

`corpus.py` invents most names of people from the syllables here, so that a model must copy them.
"""

TOWN = "Pebbleford"


def listed(words: str, separator: str = " ") -> list[str]:
    return words.split(separator)


COLOURS = listed(
    "red blue green yellow black white grey brown pink purple orange golden silver violet "
    "crimson turquoise beige ivory scarlet navy teal "
    "bronze copper amber olive maroon cream striped"
)

OBJECTS = listed(
    "lamp chair table kettle teapot cup plate bowl spoon pan basket bag coat hat scarf shirt "
    "blanket pillow curtain carpet clock mirror "
    "candle vase bottle box shelf stool bench ladder bucket broom umbrella kite ball drum flute "
    "violin guitar bell book notebook pen "
    "pencil map globe tent lantern bicycle scooter wagon sled boat puzzle radio camera phone "
    "jacket sweater cushion fork knife jar tray"
)

FIRST_NAMES = listed(
    "Anna Tom Mira Paul Lena Max Nina Ben Clara Otto Emma Jonas Rosa Felix Ida Hugo Marta Leo "
    "Ella Simon Sarah David Maria Peter Julia "
    "Adam Sofia Daniel Laura Mark Alice Robert Kate Henry Lucy George Olga Victor Irene Oscar "
    "Ruth Martin Helen Frank Grace Samuel"
)

ONSETS = listed(
    "b c d f g h j k l m n p q r s t v w x y z b d f g h j k l m n p r s t v w br cr dr fr gr "
    "pr tr st sh ch th kl pl bl kr sl gl fl sw sp sn ph qu wh"
)
VOWELS = listed("a e i o u a e i o u a e i o u ai ea oo ie ou y ee au io")
CODAS = [
    "",
    "",
    "",
    "",
    "",
    "n",
    "r",
    "l",
    "m",
    "s",
    "k",
    "t",
    "d",
    "p",
    "b",
    "g",
    "nd",
    "rt",
    "x",
    "v",
    "ck",
    "ng",
    "ll",
    "ss",
    "sh",
    "z",
]

JOBS = {
    "baker": "bakes bread",
    "farmer": "grows wheat",
    "teacher": "teaches the children",
    "doctor": "helps sick people",
    "painter": "paints pictures",
    "gardener": "looks after the flowers",
    "fisherman": "catches fish",
    "carpenter": "makes tables and chairs",
    "tailor": "makes coats and shirts",
    "singer": "sings songs",
    "cook": "makes soup",
    "driver": "drives the bus",
    "postman": "brings the letters",
    "librarian": "looks after the books",
    "miller": "makes flour",
    "smith": "works with iron",
    "shepherd": "looks after the sheep",
    "potter": "makes cups and bowls",
    "builder": "builds houses",
    "clockmaker": "repairs clocks",
}

ANIMALS = {
    "dog": "barks",
    "cat": "purrs",
    "horse": "runs fast",
    "goat": "climbs the hills",
    "rabbit": "eats carrots",
    "parrot": "talks",
    "hen": "lays eggs",
    "duck": "swims",
    "turtle": "walks slowly",
    "pony": "pulls a small cart",
    "mouse": "loves cheese",
    "owl": "flies at night",
}

PLACES = listed(
    "the market,the river,the mill,the school,the library,the old bridge,the park,the "
    "harbour,the forest,the hill,the bakery,the station,"
    "the town square,the lake,the bus stop,the museum,the well,the beach",
    ",",
)

FOODS = listed(
    "apple "
    "pie,bread,cheese,soup,pears,cake,honey,fish,plums,rice,nuts,carrots,eggs,porridge,cherries,pancakes",
    ",",
)

DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

FEELINGS = listed("happy sad tired angry proud hungry worried surprised calm lonely")

WEATHER = listed("sunny rainy windy cold warm foggy snowy cloudy")

SHOP_ANSWERS = {
    "When is the shop open?": "The shop is open from Monday to Friday.",
    "Where is the shop?": "The shop is near the town square.",
    "Who works in the shop?": "Two friendly people work in the shop.",
    "Can I pay with coins?": "Yes, you can pay with coins.",
    "Can I send a thing back?": "Yes, you can send it back within a week.",
    "How long does an order take?": "An order takes two or three days.",
    "Do you repair old things?": "Yes, we repair old things.",
    "I need help.": "Of course. Please tell me your name and what is wrong.",
    "I have a question.": "Please ask, I am happy to help.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye, and come again soon!",
    "How are you?": "I am fine, thank you. How can I help you?",
}

# Asked about what is outside the town, the model should say so instead of making something up.
UNKNOWN = listed(
    "the moon,the sea,music,money,Paris,Rome,cars,football,computers,science,history,films,the "
    "weather in London,numbers",
    ",",
)

OPPOSITES = {
    "big": "small",
    "hot": "cold",
    "old": "new",
    "fast": "slow",
    "light": "dark",
    "happy": "sad",
    "open": "closed",
    "full": "empty",
    "dry": "wet",
    "early": "late",
}

# What can be wrong with a thing from the shop: how customers say it, and how the shop says it back.
ISSUES = {
    "broken": (
        (
            "it arrived broken|it was broken when I opened the box|it has a big crack|it fell "
            "apart after one day|it does not work at all|"
            "it came in two pieces"
        ),
        "arrived broken",
    ),
    "late": (
        (
            "it has not arrived yet|I am still waiting for it|it should have been here a week "
            "ago|the postman never brought it|"
            "it is still not here|it did not come in time"
        ),
        "is late",
    ),
    "wrong item": (
        (
            "it is not what I ordered|you sent me something else|I ordered a different one|this "
            "is not the one I chose|"
            "I found the wrong thing in the box|someone mixed up my order"
        ),
        "is not the right one",
    ),
    "missing part": (
        (
            "one part is missing|a piece of it was not in the box|I cannot find all the parts|"
            "it came without all its parts|"
            "a small part is not there|it is not complete"
        ),
        "is not complete",
    ),
    "dirty": (
        "it is covered in dust|it has a dark stain|it is very dirty|it smells bad and has spots|"
        "it was not clean when it came|there is mud on it",
        "is not clean",
    ),
    "too small": (
        "it is too small|it is smaller than I thought|I need a bigger one|the size is too "
        "little for me|it is tiny|it should be larger",
        "is too small",
    ),
}

# What the customer wants: how customers say it, and what the shop promises.
WISHES = {
    "refund": (
        (
            "I want my money back|please give me back my money|can I have my money back|please "
            "return what I paid|I would like a refund|"
            "please pay me back"
        ),
        "You will get your money back",
    ),
    "replace": (
        (
            "please send me a new one|I would like another one|can I have a new one|please swap "
            "it for a good one|please send the right one again|"
            "I need a replacement"
        ),
        "We will send you a new one",
    ),
    "repair": (
        "can you repair it|please fix it|I hope that you can mend it|please make it good again|"
        "can someone fix it for me|I would like a repair",
        "We will repair it for you",
    ),
    "call": (
        (
            "please call me|can somebody phone me|I would like to talk to someone|please ring "
            "me tomorrow|give me a call please|"
            "can we speak about it on the phone"
        ),
        "We will call you soon",
    ),
    "collect": (
        (
            "please come and fetch it|can you pick it up|please take it away|someone should "
            "collect it at my house|please pick it up at my door|"
            "can you come and get it"
        ),
        "We will come and fetch it",
    ),
}

SENSIBLE_WISHES = {
    "broken": ("refund", "replace", "repair", "call", "collect"),
    "late": ("refund", "replace", "call"),
    "wrong item": ("refund", "replace", "call", "collect"),
    "missing part": ("refund", "replace", "repair", "call"),
    "dirty": ("refund", "replace", "repair", "collect"),
    "too small": ("refund", "replace", "call", "collect"),
}

# Labels of each fact in a record. No record of the pretraining text has two of TICKET_LABELS: that
# form belongs to the demo task.
LABELS = {
    "name": listed("name who person buyer sender client customer from"),
    "job": listed("job work trade does"),
    "animal": listed("pet animal friend keeps"),
    "thing": listed("thing product object goods item article has"),
    "place": listed("place near home where"),
    "day": listed("day date when on"),
    "food": listed("food meal eats likes"),
    "mate": listed("mate neighbour knows other"),
    "number": listed("number count many boxes"),
    "issue": listed("problem trouble fault reason issue wrong"),
    "wish": listed("wish request wants goal action next"),
}
TICKET_LABELS = ("customer", "item", "issue", "action")
