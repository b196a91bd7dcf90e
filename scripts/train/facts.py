"""Tables of facts, names and phrases that `texts` builds its questions, requests and calls from."""

NAMES = (
    "John Mary Kate Peter Anna Tom Lucy David Sarah Mike Emma James Alice Robert Julia Sam Laura Daniel Susan Jack Maria Ahmed "
    "Sofia Carlos Nina Oliver Grace Henry Leila Victor Irene Paul Diana Oscar Helen Marcus Clara George Ruth Simon"
).split()
SURNAMES = (
    "Smith Johnson Brown Miller Wilson Taylor Clark Lewis Walker Hall Young King Wright Hill Green Baker Adams Nelson Carter "
    "Mitchell Parker Evans Turner Collins Morgan Cooper Bailey Reed Bennett Garcia Martinez Lopez Kim Patel Nguyen"
).split()
THINGS = (
    "apples books cookies pencils marbles tickets oranges cards stamps flowers eggs coins balloons stickers chairs bottles "
    "letters cups shirts keys"
).split()
ROOMS = ["kitchen", "bedroom", "garage", "bathroom", "living room", "hall", "office", "garden", "basement"]
DEVICES = ["lights", "radio", "heater", "music", "oven", "television", "fan", "lamp", "alarm", "heating"]
DISHES = ["milk", "bread", "eggs", "butter", "apples", "rice", "cheese", "coffee", "tomatoes", "sugar", "green tea", "onions"]
MUSIC = ["jazz", "classical music", "rock music", "quiet music", "piano music", "dance music", "folk songs"]
PRODUCTS = ["phone", "printer", "washing machine", "laptop", "camera", "headset", "jacket", "coffee machine", "keyboard", "bicycle", "lamp", "router"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

CAPITALS = [
    tuple(pair.split(":"))
    for pair in (
        "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Japan:Tokyo China:Beijing India:Delhi Canada:Ottawa Egypt:Cairo Kenya:Nairobi "
        "Russia:Moscow Norway:Oslo Sweden:Stockholm Poland:Warsaw Greece:Athens Turkey:Ankara Australia:Canberra Portugal:Lisbon Austria:Vienna "
        "Hungary:Budapest Ireland:Dublin Finland:Helsinki Denmark:Copenhagen Belgium:Brussels Cuba:Havana Peru:Lima Chile:Santiago Iran:Tehran "
        "Iraq:Baghdad Thailand:Bangkok Vietnam:Hanoi Ukraine:Kyiv England:London Scotland:Edinburgh Iceland:Reykjavik Jordan:Amman Romania:Bucharest "
        "Bulgaria:Sofia Serbia:Belgrade Croatia:Zagreb Lebanon:Beirut Nepal:Kathmandu Colombia:Bogota Venezuela:Caracas Morocco:Rabat Ghana:Accra"
    ).split()
]
LANGUAGES = [
    tuple(pair.split(":"))
    for pair in (
        "France:French Germany:German Italy:Italian Spain:Spanish Japan:Japanese China:Chinese Russia:Russian Norway:Norwegian Sweden:Swedish Poland:Polish "
        "Greece:Greek Turkey:Turkish Portugal:Portuguese Brazil:Portuguese Mexico:Spanish Hungary:Hungarian Finland:Finnish Denmark:Danish Thailand:Thai "
        "England:English Australia:English Austria:German Argentina:Spanish Ukraine:Ukrainian Egypt:Arabic"
    ).split()
]
OPPOSITES = [
    tuple(pair.split(":"))
    for pair in (
        "hot:cold big:small fast:slow high:low old:new rich:poor hard:soft early:late open:closed full:empty happy:sad light:dark loud:quiet clean:dirty "
        "strong:weak thick:thin wide:narrow deep:shallow wet:dry sweet:sour up:down left:right near:far begin:end buy:sell win:lose push:pull love:hate "
        "question:answer day:night always:never brave:afraid cheap:expensive heavy:light tall:short first:last inside:outside true:false remember:forget"
    ).split()
]
ANIMALS = [
    ("dog", "puppy", "barks"), ("cat", "kitten", "meows"), ("cow", "calf", "moos"), ("horse", "foal", "neighs"), ("sheep", "lamb", "bleats"),
    ("pig", "piglet", "oinks"), ("duck", "duckling", "quacks"), ("lion", "cub", "roars"), ("frog", "tadpole", "croaks"), ("bear", "cub", "growls"),
    ("goat", "kid", "bleats"), ("hen", "chick", "clucks"), ("owl", "owlet", "hoots"), ("snake", "snakelet", "hisses"), ("wolf", "pup", "howls"),
]
UNITS = [
    ("hours", 60, "minutes"), ("minutes", 60, "seconds"), ("days", 24, "hours"), ("weeks", 7, "days"), ("years", 12, "months"),
    ("dozen", 12, "pieces"), ("kilometers", 1000, "meters"), ("meters", 100, "centimeters"), ("dollars", 100, "cents"), ("feet", 12, "inches"),
]
ANSWERS = [
    ("What color is the sky on a clear day?", "The sky is blue."),
    ("What color do you get when you mix blue and yellow?", "You get green."),
    ("What color do you get when you mix red and white?", "You get pink."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does an insect have?", "An insect has six legs."),
    ("How many days are there in a year?", "There are 365 days in a year."),
    ("How many letters are in the English alphabet?", "There are 26 letters."),
    ("How many continents are there?", "There are seven continents."),
    ("How many planets go around the sun?", "Eight planets go around the sun."),
    ("Which planet is closest to the sun?", "Mercury is closest to the sun."),
    ("Which planet is the largest?", "Jupiter is the largest planet."),
    ("Which planet is known as the red planet?", "Mars is the red planet."),
    ("What is the largest animal in the world?", "The blue whale is the largest animal."),
    ("What is the fastest land animal?", "The cheetah is the fastest land animal."),
    ("What is the tallest animal?", "The giraffe is the tallest animal."),
    ("What is the largest ocean?", "The Pacific Ocean is the largest ocean."),
    ("What is the highest mountain in the world?", "Mount Everest is the highest mountain."),
    ("What is the longest river in Africa?", "The Nile is the longest river in Africa."),
    ("What is the largest country in the world?", "Russia is the largest country."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("Who wrote Sherlock Holmes?", "Arthur Conan Doyle wrote Sherlock Holmes."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
    ("Who was the first person on the moon?", "Neil Armstrong was the first person on the moon."),
    ("Who invented the telephone?", "Alexander Graham Bell invented the telephone."),
    ("Who discovered gravity?", "Isaac Newton described gravity."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give us to drink?", "Cows give us milk."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("What is the boiling point of water in Celsius?", "Water boils at 100 degrees Celsius."),
    ("What gas do plants breathe in?", "Plants take in carbon dioxide."),
    ("What gas do we need to breathe?", "We need oxygen."),
    ("What is the chemical formula of water?", "It is H2O."),
    ("What is the chemical symbol for gold?", "The symbol for gold is Au."),
    ("What do you use to cut paper?", "You use scissors to cut paper."),
    ("What do you wear on your feet?", "You wear shoes on your feet."),
    ("What do you need when it rains?", "You need an umbrella when it rains."),
    ("Where do fish live?", "Fish live in water."),
    ("Where do penguins live?", "Most penguins live in Antarctica."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("Which season is the coldest?", "Winter is the coldest season."),
    ("In which direction does the sun rise?", "The sun rises in the east."),
    ("In which direction does the sun set?", "The sun sets in the west."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("How many minutes are in half an hour?", "There are thirty minutes in half an hour."),
    ("How many players are in a football team?", "A football team has eleven players."),
    ("How many strings does a violin have?", "A violin has four strings."),
    ("Is the sun a star or a planet?", "The sun is a star."),
    ("Is a tomato a fruit or a vegetable?", "A tomato is a fruit."),
    ("Is a whale a fish?", "No, a whale is a mammal."),
    ("Is the earth flat or round?", "The earth is round."),
    ("Can penguins fly?", "No, penguins cannot fly."),
    ("What currency is used in Japan?", "Japan uses the yen."),
    ("What currency is used in England?", "England uses the pound."),
    ("What is the main ingredient of bread?", "The main ingredient of bread is flour."),
    ("What is cheese made from?", "Cheese is made from milk."),
    ("What is the first month of the year?", "January is the first month."),
    ("What is the last day of the week?", "Sunday is the last day of the week."),
    ("What organ pumps blood through the body?", "The heart pumps blood."),
    ("What do we call a person who teaches?", "A person who teaches is a teacher."),
    ("What do we call a person who bakes bread?", "A person who bakes bread is a baker."),
    ("What is the plural of mouse?", "The plural of mouse is mice."),
    ("What is the plural of child?", "The plural of child is children."),
    ("What is the past tense of go?", "The past tense of go is went."),
    ("What rhymes with cat?", "Hat rhymes with cat."),
    ("What is a group of wolves called?", "A group of wolves is called a pack."),
    ("What is a young sheep called?", "A young sheep is called a lamb."),
]
TALK = [
    ("Hello, how are you today?", "I am fine, thank you. How are you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening, nice to meet you.", "Good evening, nice to meet you too."),
    ("Hi there, can you hear me?", "Yes, I can hear you."),
    ("Are you listening to me?", "Yes, I am listening."),
    ("What is your name?", "I am Hearken, a listening assistant."),
    ("Who are you?", "I am Hearken. I listen and I answer."),
    ("What can you do for me?", "I can listen to you, answer questions and describe what I hear."),
    ("Can you help me with something?", "Of course. What do you need?"),
    ("I am feeling a little tired today.", "I am sorry to hear that. Try to get some rest."),
    ("I had a really good day.", "That is great to hear!"),
    ("I am very hungry.", "Maybe it is time to eat something."),
    ("It is raining again.", "Do not forget your umbrella."),
    ("I cannot find my keys.", "Try to remember where you last had them."),
    ("I lost my job last week.", "I am sorry to hear that. Do you want to talk about it?"),
    ("Tomorrow is my birthday.", "Happy birthday for tomorrow!"),
    ("I passed my exam!", "Congratulations! Well done."),
    ("I have a headache.", "I am sorry. Drink some water and rest."),
    ("Tell me a joke.", "Why did the chicken cross the road? To get to the other side."),
    ("Do you like music?", "I like listening to music."),
    ("What should I cook for dinner tonight?", "You could make pasta with tomato sauce."),
    ("How can I sleep better?", "Go to bed at the same time and keep the room dark."),
    ("How do I make tea?", "Put a tea bag in hot water and wait three minutes."),
    ("How do I boil an egg?", "Put the egg in boiling water for eight minutes."),
    ("How can I save money?", "Write down what you spend and buy only what you need."),
    ("What is a good way to learn a language?", "Practice a little every day and speak with people."),
    ("Can you repeat that, please?", "Of course, I will say it again."),
    ("Please speak more slowly.", "Okay, I will speak more slowly."),
    ("I do not understand you.", "I am sorry. Let me say it in another way."),
    ("That is not what I meant.", "I am sorry. What did you mean?"),
    ("Stop, that is enough.", "Okay, I will stop."),
    ("Wait a moment, please.", "Okay, take your time."),
    ("Thank you for your help.", "You are welcome."),
    ("Goodbye, see you tomorrow.", "Goodbye, see you tomorrow."),
    ("Good night.", "Good night, sleep well."),
    ("Yes, please do that.", "Okay, I will do that."),
    ("No, thank you.", "All right."),
    ("I think you are right.", "Thank you. I am glad that you agree."),
    ("What time is it?", "I cannot see a clock, so I do not know the time."),
    ("What is the weather like today?", "I cannot see the weather from here."),
    ("Should I take an umbrella?", "If it looks like rain, take one."),
    ("Tell me something interesting.", "Honey never goes bad."),
    ("Can you sing a song for me?", "I cannot sing, but I can listen."),
    ("Are you a human or a machine?", "I am a machine that listens."),
    ("Where do you live?", "I run on this computer."),
    ("I am bored.", "You could read a book or go for a walk."),
    ("I am worried about my exam.", "Take a deep breath. You can prepare step by step."),
    ("My dog is sick.", "I am sorry. Please take your dog to a vet."),
    ("I want to buy a new car.", "What kind of car would you like?"),
    ("Let us talk about something else.", "Okay, what would you like to talk about?"),
]
