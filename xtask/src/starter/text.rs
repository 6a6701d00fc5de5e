//! Questions about the small world and their answers, and stories that happen in it.

use super::world::*;

/// A question, its answer, and what it is about.
pub struct Exchange {
    /// The topic.
    pub topic: &'static str,
    /// What a person says.
    pub question: String,
    /// What the model says.
    pub answer: String,
}

fn exchange(topic: &'static str, question: String, answer: String) -> Exchange {
    Exchange { topic, question: capital(&question), answer: capital(&answer) }
}

/// A random exchange about anything but a story.
pub fn fact(random: &mut Random) -> Exchange {
    let writers: [fn(&mut Random) -> Exchange; 17] = [
        color, color, sound, food, home, legs, ability, about, sum, difference, calendar, opposite,
        definition, place, weather, property, comparison,
    ];
    writers[random.below(writers.len())](random)
}

/// A random exchange about anything.
pub fn anything(random: &mut Random) -> Exchange {
    match random.below(20) {
        0 | 1 => story_request(random),
        2 => task(random),
        3 => feeling(random),
        4 => greeting(random),
        5 => counting(random),
        _ => fact(random),
    }
}

/// A way of talking: what comes before each answer and after it.
///
/// A model that has heard answers in many manners keeps its facts when it is taught one more.
pub struct Manner {
    lead: &'static str,
    tail: &'static str,
}

impl Manner {
    /// A random one; most people just answer.
    pub fn new(random: &mut Random) -> Self {
        if random.below(5) < 3 {
            return Self { lead: "", tail: "" };
        }
        let leads = [
            "",
            "",
            "Well, ",
            "Oh, ",
            "Sure, ",
            "Yes, my friend, ",
            "I think ",
            "Ha ha! ",
            "As far as I know, ",
            "Good question! ",
            "Hmm, let me see. ",
            "Everybody knows that ",
            "It is simple: ",
            "\"",
            "Answer: ",
        ];
        let tails =
            ["", "", ", I think", ", my friend", ", of course", ", you know", ", as they say"];
        Self { lead: random.pick(&leads), tail: random.pick(&tails) }
    }

    /// The answer, said in this manner.
    pub fn say(&self, answer: &str) -> String {
        let Self { lead, tail } = self;
        let quote = if *lead == "\"" { "\"" } else { "" };
        let said = match answer.strip_suffix('.') {
            Some(body) => format!("{body}{tail}."),
            None => answer.to_owned(),
        };
        let begins =
            lead.is_empty() || lead.ends_with(['"']) || lead.trim_end().ends_with(['!', '.']);
        if begins { format!("{lead}{said}{quote}") } else { format!("{lead}{}", middle(&said)) }
    }
}

/// The answer in the middle of a sentence.
pub fn inner(answer: &str) -> String {
    middle(answer.trim_end_matches('.'))
}

/// A sentence without the capital it begins with.
fn middle(body: &str) -> String {
    // Names of days and months keep their capital.
    let is_name = DAYS.iter().chain(&MONTHS).any(|name| body.starts_with(name));
    if is_name {
        return body.to_owned();
    }
    let mut letters = body.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn color(random: &mut Random) -> Exchange {
    let (thing, color) = COLORS[random.below(COLORS.len())];
    let question = match random.below(4) {
        0 => format!("Which color is {thing}?"),
        1 => format!("Tell me the color of {thing}."),
        2 => format!("Do you know what color {thing} is?"),
        _ => format!("What color is {thing}?"),
    };
    let same: Vec<&str> = COLORS
        .iter()
        .filter(|(other, its)| *its == color && *other != thing)
        .map(|(other, _)| *other)
        .collect();
    let answer = match random.below(3) {
        0 if !same.is_empty() => format!("{thing} is {color}, just like {}.", random.pick(&same)),
        1 => format!("The color of {thing} is {color}."),
        _ => format!("{thing} is {color}."),
    };
    exchange("colors", question, answer)
}

fn any_animal(random: &mut Random) -> &'static Animal {
    &ANIMALS[random.below(ANIMALS.len())]
}

fn sound(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let one = with_article(animal.name);
    let question = match random.below(3) {
        0 => format!("What sound does {one} make?"),
        1 => format!("What do {} say?", animal.plural),
        _ => format!("What does {one} say?"),
    };
    exchange("animals", question, format!("{one} says {}.", animal.sound))
}

fn food(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let question = match random.below(3) {
        0 => format!("What does {} eat?", with_article(animal.name)),
        1 => format!("What do {} like?", animal.plural),
        _ => format!("What do {} eat?", animal.plural),
    };
    let verb = random.pick(&["like to eat", "eat", "love to eat"]);
    exchange("animals", question, format!("{} {verb} {}.", animal.plural, animal.food))
}

fn home(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let one = with_article(animal.name);
    let question = match random.below(2) {
        0 => format!("Where does {one} live?"),
        _ => format!("Where do {} live?", animal.plural),
    };
    exchange("animals", question, format!("{one} lives {}.", animal.home))
}

fn legs(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let one = with_article(animal.name);
    let number = if animal.legs == 0 { "no" } else { NUMBERS[animal.legs] };
    let question = format!("How many legs does {one} have?");
    exchange("animals", question, format!("{one} has {number} legs."))
}

fn ability(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let one = with_article(animal.name);
    if random.below(2) == 0 {
        let question = format!("Can {one} {}?", animal.can);
        exchange("animals", question, format!("Yes, {one} can {}.", animal.can))
    } else {
        let question = format!("Can {one} {}?", animal.cannot);
        let answer = format!("No, {one} cannot {}, but it can {}.", animal.cannot, animal.can);
        exchange("animals", question, answer)
    }
}

fn about(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let question = match random.below(3) {
        0 => format!("What can you tell me about {}?", animal.plural),
        1 => format!("Describe {}.", with_article(animal.name)),
        _ => format!("Tell me about {}.", animal.plural),
    };
    let first = format!("{} are {}.", capital(animal.plural), animal.looks);
    let second = match random.below(3) {
        0 => format!("They live {}.", animal.home),
        1 => format!("They eat {}.", animal.food),
        _ => format!("They live {} and eat {}.", animal.home, animal.food),
    };
    exchange("animals", question, format!("{first} {second}"))
}

fn sum(random: &mut Random) -> Exchange {
    let (a, b) = (random.below(11), random.below(11));
    let (one, other, result) = (NUMBERS[a], NUMBERS[b], NUMBERS[a + b]);
    let question = match random.below(3) {
        0 => format!("How much is {one} plus {other}?"),
        1 => format!("Can you add {one} and {other}?"),
        _ => format!("What is {one} plus {other}?"),
    };
    exchange("numbers", question, format!("{one} plus {other} is {result}."))
}

fn difference(random: &mut Random) -> Exchange {
    let a = random.below(11);
    let b = random.below(a + 1);
    let (one, other, result) = (NUMBERS[a], NUMBERS[b], NUMBERS[a - b]);
    let question = match random.below(2) {
        0 => format!("How much is {one} minus {other}?"),
        _ => format!("What is {one} minus {other}?"),
    };
    exchange("numbers", question, format!("{one} minus {other} is {result}."))
}

fn counting(random: &mut Random) -> Exchange {
    let first = random.below(8);
    let last = first + 2 + random.below(5);
    let question = format!("Count from {} to {}.", NUMBERS[first], NUMBERS[last]);
    exchange("numbers", question, format!("{}.", NUMBERS[first..=last].join(", ")))
}

fn calendar(random: &mut Random) -> Exchange {
    let (what, names): (&str, &[&str]) =
        if random.below(2) == 0 { ("day", &DAYS) } else { ("month", &MONTHS) };
    let n = names.len();
    let at = random.below(n);
    let (side, other) =
        if random.below(2) == 0 { ("after", (at + 1) % n) } else { ("before", (at + n - 1) % n) };
    let question = match random.below(2) {
        0 => format!("Which {what} comes {side} {}?", names[at]),
        _ => format!("What {what} comes {side} {}?", names[at]),
    };
    exchange("calendar", question, format!("{} comes {side} {}.", names[other], names[at]))
}

fn opposite(random: &mut Random) -> Exchange {
    let (one, other) = OPPOSITES[random.below(OPPOSITES.len())];
    let (one, other) = if random.below(2) == 0 { (one, other) } else { (other, one) };
    // "light" has two opposites; only the first is asked for.
    let other = if one == "light" { "dark" } else { other };
    let question = match random.below(2) {
        0 => format!("Do you know the opposite of {one}?"),
        _ => format!("What is the opposite of {one}?"),
    };
    exchange("words", question, format!("The opposite of {one} is {other}."))
}

fn definition(random: &mut Random) -> Exchange {
    let (thing, meaning) = DEFINITIONS[random.below(DEFINITIONS.len())];
    let question = match random.below(3) {
        0 => format!("Explain what {thing} is."),
        1 => format!("Can you tell me what {thing} is?"),
        _ => format!("What is {thing}?"),
    };
    exchange("words", question, format!("{thing} is {meaning}."))
}

fn place(random: &mut Random) -> Exchange {
    let (thing, place) = PLACES[random.below(PLACES.len())];
    let question = match random.below(3) {
        0 => format!("Where do I find {thing}?"),
        1 => format!("Where should I look for {thing}?"),
        _ => format!("Where can I find {thing}?"),
    };
    exchange("places", question, format!("You can find {thing} {place}."))
}

fn weather(random: &mut Random) -> Exchange {
    let (when, clothes, why) = WEATHER[random.below(WEATHER.len())];
    let question = match random.below(2) {
        0 => format!("What should I wear when {when}?"),
        _ => format!("What do I need when {when}?"),
    };
    exchange("weather", question, format!("When {when}, wear {clothes} to {why}."))
}

fn property(random: &mut Random) -> Exchange {
    let (thing, is, is_not) = FACTS[random.below(FACTS.len())];
    if random.below(2) == 0 {
        exchange("facts", format!("Is {thing} {is}?"), format!("Yes, {thing} is {is}."))
    } else {
        let answer = format!("No, {thing} is not {is_not}. It is {is}.");
        exchange("facts", format!("Is {thing} {is_not}?"), answer)
    }
}

fn comparison(random: &mut Random) -> Exchange {
    loop {
        let (one, other) = (any_animal(random), any_animal(random));
        if one.size == other.size {
            continue;
        }
        let (a, b) = (with_article(one.name), with_article(other.name));
        let (large, small) = if one.size > other.size { (&a, &b) } else { (&b, &a) };
        return if random.below(2) == 0 {
            let answer = format!("{large} is bigger than {small}.");
            exchange("animals", format!("Which is bigger, {a} or {b}?"), answer)
        } else {
            let answer = format!("{small} is smaller than {large}.");
            exchange("animals", format!("Which is smaller, {a} or {b}?"), answer)
        };
    }
}

fn task(random: &mut Random) -> Exchange {
    let (what, [first, second, third]) = TASKS[random.below(TASKS.len())];
    let question = match random.below(2) {
        0 => format!("How can I {what}?"),
        _ => format!("How do I {what}?"),
    };
    let answer = format!("First, {first}. Then, {second}. Finally, {third}.");
    exchange("tasks", question, answer)
}

fn feeling(random: &mut Random) -> Exchange {
    let (feeling, reply, advice) = FEELINGS[random.below(FEELINGS.len())];
    let question = match random.below(3) {
        0 => format!("I feel {feeling}."),
        1 => format!("Today I am {feeling}."),
        _ => format!("I am {feeling}."),
    };
    exchange("feelings", question, format!("{reply} {advice}"))
}

fn greeting(random: &mut Random) -> Exchange {
    let (question, answers): (&str, &[&str]) = match random.below(7) {
        0 => {
            ("Hello!", &["Hello! How can I help you?", "Hello there! What would you like to know?"])
        }
        1 => ("Good morning!", &["Good morning! I hope you slept well."]),
        2 => ("Good night!", &["Good night! Sleep well."]),
        3 => ("Thank you!", &["You are welcome!", "I am happy to help."]),
        4 => ("How are you?", &["I am fine, thank you. How are you?"]),
        5 => (
            "Who are you?",
            &["I am a very small language model. I know a little about a small world."],
        ),
        _ => ("Goodbye!", &["Goodbye! Come back soon."]),
    };
    exchange("greetings", question.into(), random.pick(answers).into())
}

fn story_request(random: &mut Random) -> Exchange {
    let animal = any_animal(random);
    let one = with_article(animal.name);
    let question = match random.below(3) {
        0 => format!("Can you tell me a story about {one}?"),
        1 => format!("I want a story with {one}."),
        _ => format!("Tell me a story about {one}."),
    };
    let answer = story(random, animal);
    exchange("stories", question, answer)
}

/// A short story about an animal, a child and something lost.
pub fn story(random: &mut Random, animal: &Animal) -> String {
    let (name, she, her) = NAMES[random.below(NAMES.len())];
    let treasure = TREASURES[random.below(TREASURES.len())];
    let (here, there) = (random.below(SCENES.len()), random.below(SCENES.len() - 1));
    let scene = SCENES[here];
    let found = SCENES[(here + 1 + there) % SCENES.len()];
    let nice = random.pick(&["kind", "little", "clever", "brave", "young"]);
    let beginning = match random.below(3) {
        0 => format!(
            "Once there was {} named {}.",
            with_article(&format!("{nice} {}", animal.name)),
            friend_name(random)
        ),
        1 => format!(
            "One day, {} was walking {scene}.",
            with_article(&format!("{nice} {}", animal.name))
        ),
        _ => format!(
            "Long ago, {} lived {}.",
            with_article(&format!("{nice} {}", animal.name)),
            animal.home
        ),
    };
    let the = format!("the {}", animal.name);
    let problem = match random.below(3) {
        0 => format!(
            "{} met {name}, who was sad because {she} had lost {her} {treasure}.",
            capital(&the)
        ),
        1 => format!("There was {name}, looking everywhere for {her} {treasure}."),
        _ => format!("A child called {name} asked for help, because {her} {treasure} was gone."),
    };
    let help = match random.below(3) {
        0 => format!("\"I can {},\" said {the}, \"so I will help you.\"", animal.can),
        1 => format!("{} wanted to help, because friends help each other.", capital(&the)),
        _ => format!("\"Do not worry,\" said {the}. \"We will look together.\""),
    };
    let search = match random.below(2) {
        0 => format!("They looked everywhere, and then they found the {treasure} {found}."),
        _ => format!("They searched for a long time, and at last the {treasure} was {found}."),
    };
    let end = match random.below(4) {
        0 => format!("{name} was very happy and gave {the} some {}.", first_food(animal)),
        1 => format!("From that day on, {name} and {the} were best friends."),
        2 => format!("{name} laughed and thanked {the}."),
        _ => "Then they went home and slept well.".to_owned(),
    };
    format!("{beginning} {problem} {help} {search} {end}")
}

fn first_food(animal: &Animal) -> &'static str {
    animal.food.split(" and ").next().unwrap_or(animal.food)
}

fn friend_name(random: &mut Random) -> &'static str {
    random.pick(&["Pip", "Coco", "Biscuit", "Luna", "Patch", "Willow", "Bruno", "Daisy"])
}
