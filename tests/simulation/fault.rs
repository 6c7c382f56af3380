//! What can go wrong at an external effect, and the plan that says where it does.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// How an effect goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// It fails before it takes effect.
    FailBefore,
    /// It takes effect, and says that it failed.
    FailAfter,
    /// It hangs to its deadline; what has none takes longer than its caller waits.
    Hang,
    /// It answers nonsense: a disk reads zeros or noise, a write is torn, a program ends with a status of its own.
    Garbage,
    /// It takes effect, and is the last thing that the driver's process does.
    Die,
    /// It takes effect, and is the last thing before the node's power is cut: what was not flushed may be lost.
    Power,
    /// The driver's process dies, and the program that it had started takes effect afterwards.
    Orphan,
}

impl Fault {
    pub(crate) const ALL: [Self; 7] =
        [Self::FailBefore, Self::FailAfter, Self::Hang, Self::Garbage, Self::Die, Self::Power, Self::Orphan];

    fn as_str(self) -> &'static str {
        match self {
            Self::FailBefore => "fail-before",
            Self::FailAfter => "fail-after",
            Self::Hang => "hang",
            Self::Garbage => "garbage",
            Self::Die => "die",
            Self::Power => "power",
            Self::Orphan => "orphan",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|fault| fault.as_str() == text);
        found.ok_or_else(|| anyhow::anyhow!("{text:?} is no fault"))
    }
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a limit.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

/// Which effects go wrong, by their number in the schedule, and how the dice fall: what a power cut leaves, for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) at: BTreeMap<usize, Fault>,
    pub(crate) dice: u64,
}

impl Faults {
    pub(crate) fn one(at: usize, fault: Fault) -> Self {
        Self { at: [(at, fault)].into(), dice: 0 }
    }

    /// The same faults with other dice.
    pub(crate) fn rolled(&self, dice: u64) -> Self {
        Self { dice, ..self.clone() }
    }

    pub(crate) fn and(&self, at: usize, fault: Fault) -> Self {
        let mut both = self.clone();
        both.at.insert(at, fault);
        both
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<_> = self.at.iter().map(|(at, fault)| format!("{at}={fault}")).collect();
        f.write_str(&told.join(","))?;
        if self.dice == 0 { Ok(()) } else { write!(f, "/{}", self.dice) }
    }
}

impl FromStr for Faults {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (text, dice) = text.split_once('/').unwrap_or((text, "0"));
        let mut faults = Self { dice: dice.parse()?, ..Self::default() };
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (at, fault) = pair.split_once('=').ok_or_else(|| anyhow::anyhow!("{pair:?} is not NUMBER=FAULT"))?;
            faults.at.insert(at.parse()?, fault.parse()?);
        }
        Ok(faults)
    }
}
