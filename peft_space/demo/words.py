"""The words of the little town: lists only, no logic.

Names of people are mostly invented by `world.py` from the syllables here, so that a model must copy them instead of knowing them.
"""

TOWN = "Pebbleford"

COLOURS = (
    "red blue green yellow black white grey brown pink purple orange golden silver violet crimson turquoise beige ivory scarlet navy teal "
    "bronze copper amber olive maroon cream striped"
).split()

OBJECTS = (
    "lamp chair table kettle teapot cup plate bowl spoon pan basket bag coat hat scarf shirt blanket pillow curtain carpet clock mirror "
    "candle vase bottle box shelf stool bench ladder bucket broom umbrella kite ball drum flute violin guitar bell book notebook pen "
    "pencil map globe tent lantern bicycle scooter wagon sled boat puzzle radio camera phone jacket sweater cushion fork knife jar tray"
).split()

FIRST_NAMES = (
    "Anna Tom Mira Paul Lena Max Nina Ben Clara Otto Emma Jonas Rosa Felix Ida Hugo Marta Leo Ella Simon Sarah David Maria Peter Julia "
    "Adam Sofia Daniel Laura Mark Alice Robert Kate Henry Lucy George Olga Victor Irene Oscar Ruth Martin Helen Frank Grace Samuel"
).split()

ONSETS = "b d f g h j k l m n p r s t v w z br dr fr gr tr st sh ch th kl pl bl kr sl".split()
VOWELS = "a e i o u a e i o u ai ea oo ie ou".split()
CODAS = ["", "", "", "", "n", "r", "l", "m", "s", "k", "t", "nd", "rt", "x", "v"]

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

PLACES = (
    "the market,the river,the mill,the school,the library,the old bridge,the park,the harbour,the forest,the hill,the bakery,the station,"
    "the town square,the lake,the bus stop,the museum,the well,the beach"
).split(",")

FOODS = "apple pie,bread,cheese,soup,pears,cake,honey,fish,plums,rice,nuts,carrots,eggs,porridge,cherries,pancakes".split(",")

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

FEELINGS = "happy sad tired angry proud hungry worried surprised calm lonely".split()

WEATHER = "sunny rainy windy cold warm foggy snowy cloudy".split()

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
        "it arrived broken|it was broken when I opened the box|it has a big crack|it fell apart after one day|it does not work at all|"
        "it came in two pieces",
        "arrived broken",
    ),
    "late": (
        "it has not arrived yet|I am still waiting for it|it should have been here a week ago|the postman never brought it|"
        "it is still not here|it did not come in time",
        "is late",
    ),
    "wrong item": (
        "it is not what I ordered|you sent me something else|I ordered a different one|this is not the one I chose|"
        "I found the wrong thing in the box|someone mixed up my order",
        "is not the right one",
    ),
    "missing part": (
        "one part is missing|a piece of it was not in the box|I cannot find all the parts|it came without all its parts|"
        "a small part is not there|it is not complete",
        "is not complete",
    ),
    "dirty": (
        "it is covered in dust|it has a dark stain|it is very dirty|it smells bad and has spots|it was not clean when it came|there is mud on it",
        "is not clean",
    ),
    "too small": (
        "it is too small|it is smaller than I thought|I need a bigger one|the size is too little for me|it is tiny|it should be larger",
        "is too small",
    ),
}

# What the customer wants: how customers say it, and what the shop promises.
WISHES = {
    "refund": (
        "I want my money back|please give me back my money|can I have my money back|please return what I paid|I would like a refund|"
        "please pay me back",
        "You will get your money back",
    ),
    "replace": (
        "please send me a new one|I would like another one|can I have a new one|please swap it for a good one|please send the right one again|"
        "I need a replacement",
        "We will send you a new one",
    ),
    "repair": (
        "can you repair it|please fix it|I hope that you can mend it|please make it good again|can someone fix it for me|I would like a repair",
        "We will repair it for you",
    ),
    "call": (
        "please call me|can somebody phone me|I would like to talk to someone|please ring me tomorrow|give me a call please|"
        "can we speak about it on the phone",
        "We will call you soon",
    ),
    "collect": (
        "please come and fetch it|can you pick it up|please take it away|someone should collect it at my house|please pick it up at my door|"
        "can you come and get it",
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

# Labels a record may give each fact. A record of the pretraining text never holds two of TICKET_LABELS: that form is the demo task's.
LABELS = {
    "name": "name who person buyer sender client customer from".split(),
    "job": "job work trade does".split(),
    "animal": "pet animal friend keeps".split(),
    "thing": "thing product object goods item article has".split(),
    "place": "place near home where".split(),
    "day": "day date when on".split(),
    "food": "food meal eats likes".split(),
    "mate": "mate neighbour knows other".split(),
    "number": "number count many boxes".split(),
    "issue": "problem trouble fault reason issue wrong".split(),
    "wish": "wish request wants goal action next".split(),
}
TICKET_LABELS = ("customer", "item", "issue", "action")
