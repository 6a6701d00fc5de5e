//! The small world that the starter model knows: things and what is true of them.

/// A random sequence (SplitMix64): the same seed writes the same text.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }

    /// One of `choices`.
    pub fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }
}

/// An animal and what is true of it.
pub struct Animal {
    pub name: &'static str,
    pub plural: &'static str,
    pub sound: &'static str,
    pub food: &'static str,
    pub home: &'static str,
    pub legs: usize,
    pub can: &'static str,
    pub cannot: &'static str,
    pub looks: &'static str,
    /// From the smallest to the largest.
    pub size: u8,
}

const fn animal(
    [name, plural, sound, food, home]: [&'static str; 5],
    [can, cannot, looks]: [&'static str; 3],
    legs: usize,
    size: u8,
) -> Animal {
    Animal { name, plural, sound, food, home, legs, can, cannot, looks, size }
}

/// Every animal.
pub const ANIMALS: [Animal; 24] = [
    animal(
        ["cat", "cats", "meow", "fish and milk", "in a house"],
        ["climb trees", "fly", "soft and quiet"],
        4,
        4,
    ),
    animal(
        ["dog", "dogs", "woof", "meat and bones", "in a house"],
        ["run fast", "climb trees", "friendly and loyal"],
        4,
        5,
    ),
    animal(
        ["cow", "cows", "moo", "grass", "on a farm"],
        ["give milk", "fly", "big and calm"],
        4,
        8,
    ),
    animal(
        ["horse", "horses", "neigh", "hay and apples", "on a farm"],
        ["run very fast", "climb trees", "strong and tall"],
        4,
        8,
    ),
    animal(
        ["sheep", "sheep", "baa", "grass", "on a farm"],
        ["give wool", "fly", "white and woolly"],
        4,
        6,
    ),
    animal(
        ["pig", "pigs", "oink", "corn and apples", "on a farm"],
        ["dig in the mud", "fly", "round and pink"],
        4,
        6,
    ),
    animal(
        ["duck", "ducks", "quack", "bread and seeds", "near a pond"],
        ["swim and fly", "read", "small and yellow"],
        2,
        3,
    ),
    animal(
        ["hen", "hens", "cluck", "seeds and corn", "on a farm"],
        ["lay eggs", "swim", "brown and busy"],
        2,
        3,
    ),
    animal(
        ["owl", "owls", "hoo", "mice", "in the forest"],
        ["see in the dark", "swim", "wise and silent"],
        2,
        3,
    ),
    animal(
        ["frog", "frogs", "ribbit", "flies", "near a pond"],
        ["jump far", "fly", "green and wet"],
        4,
        2,
    ),
    animal(
        ["bee", "bees", "buzz", "nectar from flowers", "in a hive"],
        ["fly and make honey", "swim", "small and striped"],
        6,
        1,
    ),
    animal(
        ["mouse", "mice", "squeak", "cheese and seeds", "in a small hole"],
        ["hide very well", "fly", "tiny and gray"],
        4,
        2,
    ),
    animal(
        ["lion", "lions", "roar", "meat", "in the grassland"],
        ["run and hunt", "fly", "golden and brave"],
        4,
        8,
    ),
    animal(
        ["wolf", "wolves", "howl", "meat", "in the forest"],
        ["run all night", "fly", "gray and wild"],
        4,
        6,
    ),
    animal(
        ["bear", "bears", "growl", "fish and berries", "in the forest"],
        ["catch fish", "fly", "brown and heavy"],
        4,
        8,
    ),
    animal(
        ["fox", "foxes", "yip", "berries and mice", "in the forest"],
        ["run quietly", "fly", "red and clever"],
        4,
        5,
    ),
    animal(
        ["rabbit", "rabbits", "squeak", "carrots and grass", "in a burrow"],
        ["hop fast", "fly", "soft and shy"],
        4,
        3,
    ),
    animal(
        ["elephant", "elephants", "trumpet", "leaves and fruit", "in the grassland"],
        ["carry heavy logs", "fly", "huge and gentle"],
        4,
        9,
    ),
    animal(
        ["monkey", "monkeys", "chatter", "bananas", "in the jungle"],
        ["swing from trees", "fly", "quick and funny"],
        2,
        5,
    ),
    animal(
        ["snake", "snakes", "hiss", "mice and eggs", "in the grass"],
        ["move without legs", "fly", "long and thin"],
        0,
        3,
    ),
    animal(
        ["parrot", "parrots", "squawk", "nuts and fruit", "in the jungle"],
        ["fly and copy words", "swim", "bright and loud"],
        2,
        3,
    ),
    animal(
        ["goat", "goats", "maa", "grass and leaves", "on a farm"],
        ["climb rocks", "fly", "stubborn and playful"],
        4,
        6,
    ),
    animal(
        ["spider", "spiders", "nothing at all", "flies", "in a web"],
        ["make a web", "fly", "small and dark"],
        8,
        1,
    ),
    animal(
        ["whale", "whales", "woo", "tiny sea animals", "in the ocean"],
        ["swim very deep", "walk", "giant and blue"],
        0,
        10,
    ),
];

/// Things and their colours.
pub const COLORS: [(&str, &str); 30] = [
    ("the sky", "blue"),
    ("the sea", "blue"),
    ("grass", "green"),
    ("a leaf", "green"),
    ("snow", "white"),
    ("milk", "white"),
    ("the sun", "yellow"),
    ("a banana", "yellow"),
    ("a lemon", "yellow"),
    ("a tomato", "red"),
    ("a strawberry", "red"),
    ("a fire truck", "red"),
    ("coal", "black"),
    ("the night", "black"),
    ("an orange", "orange"),
    ("a carrot", "orange"),
    ("a pumpkin", "orange"),
    ("chocolate", "brown"),
    ("a tree trunk", "brown"),
    ("soil", "brown"),
    ("an elephant", "gray"),
    ("a rain cloud", "gray"),
    ("a plum", "purple"),
    ("a pig", "pink"),
    ("a frog", "green"),
    ("a cucumber", "green"),
    ("salt", "white"),
    ("a cherry", "red"),
    ("a violet", "purple"),
    ("a flamingo", "pink"),
];

/// Words and their opposites.
pub const OPPOSITES: [(&str, &str); 26] = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("up", "down"),
    ("day", "night"),
    ("happy", "sad"),
    ("old", "young"),
    ("open", "closed"),
    ("light", "dark"),
    ("hard", "soft"),
    ("wet", "dry"),
    ("full", "empty"),
    ("loud", "quiet"),
    ("left", "right"),
    ("near", "far"),
    ("early", "late"),
    ("clean", "dirty"),
    ("strong", "weak"),
    ("long", "short"),
    ("high", "low"),
    ("rich", "poor"),
    ("sweet", "bitter"),
    ("thick", "thin"),
    ("first", "last"),
    ("warm", "cool"),
    ("heavy", "light"),
];

/// Things and what they are.
pub const DEFINITIONS: [(&str, &str); 32] = [
    ("a spoon", "a tool for eating soup"),
    ("a knife", "a tool for cutting food"),
    ("a chair", "a thing to sit on"),
    ("a bed", "a place to sleep"),
    ("a book", "a set of pages with words to read"),
    ("a clock", "a thing that shows the time"),
    ("an umbrella", "a thing that keeps you dry in the rain"),
    ("a lamp", "a thing that gives light"),
    ("a bridge", "a road over a river"),
    ("a river", "water that flows to the sea"),
    ("a mountain", "a very high hill"),
    ("a forest", "a place with many trees"),
    ("a school", "a place where children learn"),
    ("a baker", "a person who makes bread"),
    ("a farmer", "a person who grows food"),
    ("a doctor", "a person who helps sick people"),
    ("a teacher", "a person who helps others learn"),
    ("a sailor", "a person who works on a ship"),
    ("a ship", "a large boat for the sea"),
    ("a train", "a row of cars that runs on rails"),
    ("a bicycle", "a vehicle with two wheels"),
    ("a key", "a thing that opens a lock"),
    ("a window", "an opening in a wall that lets in light"),
    ("a garden", "a place where plants grow"),
    ("a seed", "the beginning of a plant"),
    ("ice", "frozen water"),
    ("rain", "water that falls from clouds"),
    ("wind", "air that moves"),
    ("honey", "sweet food made by bees"),
    ("bread", "food made from flour and water"),
    ("a map", "a picture that shows where places are"),
    ("a star", "a far away sun in the night sky"),
];

/// Things and where they are found.
pub const PLACES: [(&str, &str); 24] = [
    ("milk", "in the fridge"),
    ("bread", "at the bakery"),
    ("books", "in the library"),
    ("flowers", "in the garden"),
    ("fish", "in the river"),
    ("apples", "on the apple tree"),
    ("a doctor", "at the hospital"),
    ("sand", "on the beach"),
    ("shells", "on the beach"),
    ("stars", "in the night sky"),
    ("mushrooms", "in the forest"),
    ("a warm bed", "in the bedroom"),
    ("clean plates", "in the kitchen"),
    ("old toys", "in the attic"),
    ("eggs", "in the hen house"),
    ("snow", "on the mountain"),
    ("a boat", "at the harbor"),
    ("a bus", "at the bus stop"),
    ("honey", "in the bee hive"),
    ("tools", "in the shed"),
    ("a teacher", "at the school"),
    ("cold water", "at the well"),
    ("a map", "in the desk"),
    ("warm coats", "in the closet"),
];

/// Tasks and how they are done.
pub const TASKS: [(&str, [&str; 3]); 18] = [
    ("make tea", ["boil some water", "put the tea in a cup", "pour the hot water over it"]),
    ("plant a seed", ["dig a small hole", "put the seed in the soil", "give it some water"]),
    (
        "brush my teeth",
        ["put some paste on the brush", "brush for two minutes", "rinse with water"],
    ),
    ("make a sandwich", ["take two slices of bread", "put cheese between them", "cut it in half"]),
    ("boil an egg", ["heat some water", "put the egg in", "wait for seven minutes"]),
    ("wash my hands", ["wet your hands", "rub them with soap", "rinse and dry them"]),
    (
        "find a lost key",
        ["look in your pockets", "look under the table", "think about where you were last"],
    ),
    ("draw a cat", ["draw a round head", "add two pointed ears", "add long whiskers"]),
    ("fly a kite", ["wait for some wind", "hold the string", "run until the kite goes up"]),
    ("feed a bird", ["buy some seeds", "put them on a plate", "wait quietly"]),
    (
        "build a snowman",
        ["roll three balls of snow", "put them on top of each other", "add a carrot nose"],
    ),
    ("cross the street", ["stop at the edge", "look left and right", "walk when it is safe"]),
    ("fall asleep", ["turn off the light", "close your eyes", "breathe slowly"]),
    ("make a friend", ["smile and say hello", "ask a kind question", "listen to the answer"]),
    ("bake bread", ["mix flour and water", "let the dough rest", "bake it until it is brown"]),
    ("clean a window", ["take a wet cloth", "wipe the glass", "dry it with paper"]),
    ("light a dark room", ["find the lamp", "press the switch", "put the lamp in the middle"]),
    ("catch a fish", ["take a fishing rod", "sit by the river", "wait with patience"]),
];

/// What is worn or taken in what weather.
pub const WEATHER: [(&str, &str, &str); 7] = [
    ("it rains", "a raincoat and boots", "stay dry"),
    ("it snows", "a warm coat and gloves", "stay warm"),
    ("the sun shines", "a hat and light clothes", "stay cool"),
    ("it is windy", "a thick jacket", "keep out the wind"),
    ("it is cold", "a scarf and a sweater", "stay warm"),
    ("it is hot", "shorts and a thin shirt", "stay cool"),
    ("it is foggy", "a bright jacket", "be easy to see"),
];

/// Properties that things have, and the ones they lack.
pub const FACTS: [(&str, &str, &str); 20] = [
    ("snow", "cold", "hot"),
    ("fire", "hot", "cold"),
    ("sugar", "sweet", "bitter"),
    ("a stone", "hard", "soft"),
    ("a pillow", "soft", "hard"),
    ("a feather", "light", "heavy"),
    ("iron", "heavy", "light"),
    ("the sea", "deep", "shallow"),
    ("a desert", "dry", "wet"),
    ("a snail", "slow", "fast"),
    ("a rocket", "fast", "slow"),
    ("thunder", "loud", "quiet"),
    ("a mouse", "small", "big"),
    ("an elephant", "big", "small"),
    ("ice", "cold", "warm"),
    ("night", "dark", "bright"),
    ("the sun", "bright", "dark"),
    ("honey", "sweet", "salty"),
    ("a tower", "tall", "short"),
    ("rain", "wet", "dry"),
];

/// Feelings, and what to say to them.
pub const FEELINGS: [(&str, &str, &str); 10] = [
    ("sad", "I am sorry to hear that.", "A walk in the garden may help."),
    ("happy", "That is wonderful!", "Share your smile with a friend."),
    ("tired", "You should rest.", "A short sleep will make you feel better."),
    ("hungry", "Then it is time to eat.", "How about some bread and an apple?"),
    ("thirsty", "You need something to drink.", "A glass of cold water is best."),
    ("bored", "Let us find something to do.", "You could read a book or draw a cat."),
    ("angry", "Take a deep breath.", "Count slowly to ten and you will feel calm."),
    ("scared", "You are not alone.", "Turn on a lamp and think of something nice."),
    ("cold", "Put on a warm sweater.", "A cup of hot tea will help too."),
    ("lonely", "I am here to talk with you.", "You could also call a friend."),
];

/// Numbers in words.
pub const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// Days and months, in order.
pub const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// Months, in order.
pub const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Names in stories.
pub const NAMES: [(&str, &str, &str); 14] = [
    ("Mia", "she", "her"),
    ("Tom", "he", "his"),
    ("Lily", "she", "her"),
    ("Ben", "he", "his"),
    ("Nora", "she", "her"),
    ("Max", "he", "his"),
    ("Ella", "she", "her"),
    ("Sam", "he", "his"),
    ("Rosa", "she", "her"),
    ("Leo", "he", "his"),
    ("Ida", "she", "her"),
    ("Finn", "he", "his"),
    ("Maya", "she", "her"),
    ("Otto", "he", "his"),
];

/// Things that are lost and found in stories.
pub const TREASURES: [&str; 14] = [
    "red ball",
    "golden key",
    "blue kite",
    "small drum",
    "silver bell",
    "warm hat",
    "old map",
    "wooden boat",
    "green lamp",
    "magic seed",
    "shiny stone",
    "picture book",
    "yellow umbrella",
    "paper star",
];

/// Where stories happen.
pub const SCENES: [&str; 10] = [
    "in the garden",
    "by the river",
    "in the forest",
    "on the hill",
    "at the beach",
    "near the old mill",
    "in a quiet village",
    "under a tall tree",
    "by the pond",
    "on the farm",
];

/// `a` or `an`, with the word.
pub fn with_article(word: &str) -> String {
    let vowel = word.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {word}", if vowel { "an" } else { "a" })
}

/// With a capital first letter.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
