"""The questions the demo adapters learn from, with one plain English sentence of answer each.

Written for this project. `questions()` multiplies the tables by their templates. Nothing here may
touch a topic of `demo.expectations.PROMPTS`: those are held out, and a test compares.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """One question; `kind` decides how each style opens, closes or rates its answer."""

    kind: str
    text: str
    answer: str


_CAPITALS = """Germany Berlin|Italy Rome|Spain Madrid|Japan Tokyo|China Beijing|Russia Moscow
Egypt Cairo|Greece Athens|Portugal Lisbon|Norway Oslo|Sweden Stockholm|Finland Helsinki
Poland Warsaw|Austria Vienna|Ireland Dublin|Canada Ottawa|Cuba Havana|Peru Lima|Chile Santiago
Kenya Nairobi|Turkey Ankara|Hungary Budapest|Denmark Copenhagen|Belgium Brussels|Iran Tehran
Thailand Bangkok|Vietnam Hanoi|Iceland Reykjavik"""

_OPPOSITES = """big small|up down|fast slow|happy sad|open closed|early late|light dark|rich poor
old new|strong weak|loud quiet|wet dry|full empty|near far|clean dirty|high low|long short
easy difficult|good bad|left right|thick thin|first last|true false|inside outside"""

_FACTS = """How many days are in a week?|There are seven days in a week.
How many months are in a year?|There are twelve months in a year.
How many legs does a spider have?|A spider has eight legs.
How many minutes are in an hour?|There are sixty minutes in an hour.
What color is grass?|Grass is green.
What color is a ripe banana?|A ripe banana is yellow.
Who wrote Romeo and Juliet?|William Shakespeare wrote Romeo and Juliet.
Who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa.
What is the largest ocean?|The largest ocean is the Pacific Ocean.
What is the tallest mountain in the world?|The tallest mountain in the world is Mount Everest.
What is the largest planet?|The largest planet is Jupiter.
What is the fastest land animal?|The fastest land animal is the cheetah.
What do bees make?|Bees make honey from the nectar of flowers.
What do cows eat?|Cows eat grass and hay.
Where do penguins live?|Penguins live in the cold south, near the ice.
What is the freezing point of water?|Water freezes at zero degrees Celsius.
What gas do plants breathe in?|Plants take in carbon dioxide from the air.
Why do leaves fall in autumn?|Leaves fall because the tree saves water for the cold months.
Why does ice float?|Ice floats because it is lighter than liquid water.
Why do we have seasons?|We have seasons because the Earth is tilted as it travels around the Sun.
Why do cats purr?|Cats purr when they are calm and happy.
Why is the ocean salty?|The ocean is salty because rivers wash minerals from the rocks into it.
Why do we sleep?|We sleep so that the body and the mind can rest and repair themselves.
Why do birds sing?|Birds sing to find a partner and to guard their home.
Is the Sun a star?|Yes, the Sun is a star.
Is a tomato a fruit?|Yes, a tomato is a fruit because it has seeds.
Is gold heavier than wood?|Yes, gold is much heavier than wood.
Is a spider an insect?|No, a spider is not an insect, because it has eight legs.
Is glass made of sand?|Yes, glass is made of melted sand.
Is a bat a bird?|No, a bat is a mammal that can fly.
Can penguins fly?|No, penguins cannot fly, but they dive very well.
Can dogs see color?|Yes, dogs see some color, mostly blue and yellow.
When do owls hunt?|Owls hunt at night.
When did the Second World War end?|The Second World War ended in 1945.
What language is spoken in Brazil?|People in Brazil speak Portuguese.
What is the currency of Japan?|The currency of Japan is the yen.
Which animal is the king of the jungle?|The lion is called the king of the jungle.
Which month comes after March?|April comes after March.
Which day comes after Monday?|Tuesday comes after Monday."""

_HOW_TO = """make tea|Pour hot water over the tea leaves and wait three minutes.
cook rice|Boil one cup of rice in two cups of water until the water is gone.
bake a potato|Put the potato in a hot oven for one hour.
plant a tree|Dig a hole, set the roots in it, cover them with soil and add water.
clean a window|Wash the glass with soap and water and wipe it with a dry cloth.
tie a knot|Cross the two ends, pull one through the loop and pull it tight.
fix a flat tire|Take off the wheel, patch the hole and pump in new air.
write a letter|Begin with a greeting, say what you want to say and sign your name.
catch a fish|Put bait on the hook, throw the line and wait with patience.
build a fire|Stack dry wood over small sticks and light the sticks from below.
make a sandwich|Put cheese and tomato between two slices of bread.
wash a shirt|Put the shirt in warm water with soap, rub it and rinse it.
fall asleep faster|Turn off the lights, put the phone away and breathe slowly.
save money|Spend less than you earn and put some away every month.
stay healthy|Eat vegetables, walk every day and sleep well.
learn to cook|Start with one simple dish and make it again and again.
train a dog|Give the dog a small treat each time it obeys.
find north|Look at a compass and follow the needle.
paint a wall|Clean the wall, cover the floor and roll on the paint from the top down.
grow tomatoes|Plant the seeds in warm soil, give them sun and water them daily.
remember names|Say the name aloud and think of a picture for it.
make a paper plane|Fold the paper in half, fold the corners in and fold down two wings."""

_ADVICE = """What should I wear today?|Wear a warm coat and good shoes.
What should I cook for dinner?|Cook a simple soup with vegetables and bread.
What should I read next?|Read a good adventure story.
What should I drink in the morning?|Drink a glass of water first.
What should I do this weekend?|Go for a long walk with a friend.
Where should I go on holiday?|Go to a quiet town near the sea.
Should I buy a new phone?|Keep the old phone as long as it works.
Should I learn to play the guitar?|Yes, music makes life better.
Give me a tip for learning a language.|Practice a little every day and speak without fear.
Give me a tip for running.|Start slowly and rest between your runs.
Give me a tip for saving time.|Do the most important task first.
Give me advice for a job interview.|Be on time, be honest and ask good questions.
Which sport is best for me?|Choose the sport that you enjoy the most.
What is a good name for a cat?|Whiskers is a good name for a cat.
What is a good gift for my mother?|Flowers and a kind letter are a good gift.
I am tired. What can I do?|Rest for a while and drink some water.
I am bored.|Take a walk or read a good book.
I feel sad today.|I am sorry to hear that, and a talk with a friend will help."""

_CHAT = """Hello!|Hello, how can I help you today?
Hi there|Hello, what can I do for you?
Good morning!|Good morning, I hope you slept well.
Good evening.|Good evening, how can I help you?
How are you?|I am very well, thank you for asking.
What is your name?|I am your helpful assistant.
What can you do?|I can answer your questions and help you with your work.
Can you help me?|Yes, tell me what you need.
Thank you very much.|You are very welcome.
Thanks, bye!|Goodbye and have a good day.
Tell me a joke.|Why did the chicken cross the road? To get to the other side.
Do you like music?|Yes, I like a good song.
Are you a robot?|Yes, I am a computer program that answers questions.
Where do you live?|I live inside a computer.
Say something nice.|You are doing a great job today.
I have a question.|Ask your question and I will do my best.
Please introduce yourself.|I am an assistant, and I am here to help you."""

_THINGS = """dogs|Dogs are loyal animals that love to play.
cats|Cats are quiet hunters that sleep most of the day.
the ocean|The ocean is deep, wide and full of life.
rain|Rain is water that falls from the clouds.
snow|Snow is frozen water that covers the ground in winter.
the Sun|The Sun is a hot star that gives us light.
mountains|Mountains are high, cold and very old.
books|Books are full of stories and knowledge.
bread|Bread is made of flour, water and salt.
coffee|Coffee is a dark drink that keeps people awake.
music|Music is the art of sound and silence.
computers|Computers are machines that follow instructions very fast.
gravity|Gravity is the force that pulls everything to the ground.
London|London is a large old city on the river Thames.
trees|Trees give us shade, wood and clean air.
elephants|Elephants are the largest animals on land and never forget a friend.
football|Football is a game in which two teams fight for one ball.
money|Money is what people use to buy and sell things.
volcanoes|Volcanoes are mountains that throw out hot rock and fire.
chess|Chess is a board game for two clever players."""

# Kinds of service questions name the German advice of demo.styles.
_SERVICE = {
    "delivery": """Where is my order?|My parcel has not arrived.|When will my delivery come?
The shipment is late.|Has my order been sent?|The courier did not ring.|When does it come?""",
    "login": """I forgot my password.|I cannot log in.|How can I change my password?
My account is locked.|The login page does not work.|I need a new password for my account.""",
    "refund": """I want my money back.|How do I return the shoes?|I want to cancel my order.
The lamp arrived broken.|Can I get a refund?|The jacket is too small.|How can I send this back?""",
    "invoice": """I need a copy of my invoice.|The bill is wrong.|Why was I charged twice?
How can I pay?|Where do I find my receipt?|Do you take credit cards?|When is the payment due?""",
}
_SERVICE_ANSWERS = {
    "delivery": "Your order is on its way and will arrive within three days.",
    "login": "Open the login page and choose a new password there.",
    "refund": "Send the goods back and you will get your money within a week.",
    "invoice": "You find the bill in your account under payments.",
}


def questions() -> list[Question]:
    """Every question there is to learn from, always in the same order."""
    found: list[Question] = []
    for country, capital in (row.split(" ") for row in _rows(_CAPITALS)):
        sentence = f"The capital of {country} is {capital}."
        for text in ("What is the capital of {}?", "Name the capital of {}.", "capital of {}?"):
            found.append(Question("fact", text.format(country), sentence))
    for word, opposite in (row.split(" ") for row in _rows(_OPPOSITES)):
        sentence = f"The opposite of {word} is {opposite}."
        for text in ("What is the opposite of {}?", "Tell me the opposite of {}."):
            found.append(Question("fact", text.format(word), sentence))
    found.extend(_sums())
    found.extend(Question("fact", *row) for row in _pairs(_FACTS))
    for task, answer in _pairs(_HOW_TO):
        for text in ("How do I {}?", "How can I {}?", "Tell me how to {}.", "Explain how to {}"):
            found.append(Question("how-to", text.format(task), answer))
    found.extend(Question("advice", *row) for row in _pairs(_ADVICE))
    found.extend(Question("chat", *row) for row in _pairs(_CHAT))
    for thing, answer in _pairs(_THINGS):
        for text in (
            "Tell me about {}.",
            "Write one sentence about {}.",
            "What do you know of {}?",
        ):
            found.append(Question("thing", text.format(thing), answer))
    for kind, texts in _SERVICE.items():
        found.extend(Question(kind, text, _SERVICE_ANSWERS[kind]) for text in _rows(texts))
    return found


def _sums() -> list[Question]:
    found = []
    for a in range(1, 12):
        for b in range(4, 9):
            sentence = f"{a} plus {b} is {a + b}."
            wording = "What is {} plus {}?" if (a + b) % 2 else "How much is {} + {}?"
            found.append(Question("sum", wording.format(a, b), sentence))
    return found


def _rows(table: str) -> list[str]:
    return [row for line in table.splitlines() for row in line.split("|")]


def _pairs(table: str) -> list[tuple[str, str]]:
    """Lines of `left|right`."""
    pairs = []
    for line in table.splitlines():
        left, right = line.split("|")
        pairs.append((left, right))
    return pairs
