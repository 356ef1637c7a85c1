//! What a model's tokens cost, in whole millionths of a currency. A price is looked up once, when a turn
//! is admitted, and recorded there: whoever replays the turn never asks again.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ModelName;

/// Tokens that a price is for.
const PER: u128 = 1_000_000;

/// What a model costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Price {
    /// Millionths of the currency for a million tokens of prompt and context.
    pub prompt_per_million: u64,
    /// Millionths of the currency for a million tokens of answer.
    pub completion_per_million: u64,
    /// Of which list; empty for what nobody priced.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

impl Price {
    /// Whether it costs nothing, whatever is asked.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.prompt_per_million == 0 && self.completion_per_million == 0
    }

    /// Whether nobody priced it: then it costs nothing and is of no list.
    #[must_use]
    pub fn is_unlisted(&self) -> bool {
        *self == Self::default()
    }

    /// What a call costs, in millionths of the currency: the sum of both sides, rounded up once. More
    /// tokens never cost less, so a hold for the worst case covers the truth.
    #[must_use]
    pub fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> u64 {
        let side = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let sum = side(prompt_tokens, self.prompt_per_million)
            .saturating_add(side(completion_tokens, self.completion_per_million));
        u64::try_from(sum.div_ceil(PER)).unwrap_or(u64::MAX)
    }

    /// Tokens that so much money buys at least, whichever side they fall on; absent when they are free.
    #[must_use]
    pub fn tokens_for(&self, money: u64) -> Option<u64> {
        let dearest = self.prompt_per_million.max(self.completion_per_million);
        let tokens = (u128::from(money) * PER).checked_div(u128::from(dearest))?;
        Some(u64::try_from(tokens).unwrap_or(u64::MAX))
    }
}

/// Prices by provider and model. A model of one's own machine is listed with a price of zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PriceList {
    prices: BTreeMap<(String, Option<ModelName>), Price>,
}

impl PriceList {
    /// Sets the price of a model; without a name of every model of the provider that has no price of
    /// its own.
    pub fn set(&mut self, provider: impl Into<String>, model: Option<ModelName>, price: Price) {
        self.prices.insert((provider.into(), model), price);
    }

    /// The price of a model; absent for what nobody priced, of which no limit of money can be kept.
    #[must_use]
    pub fn of(&self, provider: &str, model: &ModelName) -> Option<&Price> {
        let own = self.prices.get(&(provider.to_owned(), Some(model.clone())));
        own.or_else(|| self.prices.get(&(provider.to_owned(), None)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(prompt: u64, completion: u64) -> Price {
        Price { prompt_per_million: prompt, completion_per_million: completion, version: "1".to_owned() }
    }

    #[test]
    fn a_cost_is_rounded_up_once_over_both_sides() {
        assert_eq!(price(150_000, 600_000).cost(0, 0), 0);
        assert_eq!(price(150_000, 600_000).cost(1, 0), 1);
        assert_eq!(price(500_000, 500_000).cost(1, 1), 1);
        assert_eq!(price(150_000, 600_000).cost(1_000_000, 2_000_000), 1_350_000);
        assert_eq!(price(u64::MAX, u64::MAX).cost(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_models_own_price_comes_before_its_providers() {
        let model = |name: &str| ModelName::parse(name).expect("a name");
        let mut list = PriceList::default();
        list.set("openai", None, price(9, 9));
        list.set("openai", Some(model("small")), price(1, 2));
        assert_eq!(list.of("openai", &model("small")), Some(&price(1, 2)));
        assert_eq!(list.of("openai", &model("large")), Some(&price(9, 9)));
        assert_eq!(list.of("ollama", &model("small")), None);
    }

    proptest! {
        #[test]
        fn what_money_buys_is_never_dearer_than_the_money(
            prompt_price in 0u64..10_000_000, completion_price in 0u64..10_000_000,
            money in 0u64..1_000_000_000, share in 0u64..=100,
        ) {
            let price = price(prompt_price, completion_price);
            if let Some(tokens) = price.tokens_for(money) {
                let prompt = u64::try_from(u128::from(tokens) * u128::from(share) / 100).expect("a part");
                prop_assert!(price.cost(prompt, tokens - prompt) <= money);
            } else {
                prop_assert!(price.is_free());
            }
        }

        #[test]
        fn more_tokens_never_cost_less(
            prompt_price in 0u64..u64::MAX, completion_price in 0u64..u64::MAX,
            prompt in 0u64..u64::MAX / 2, completion in 0u64..u64::MAX / 2, more in 0u64..u64::MAX / 2,
        ) {
            let price = price(prompt_price, completion_price);
            let cost = price.cost(prompt, completion);
            prop_assert!(price.cost(prompt + more, completion) >= cost);
            prop_assert!(price.cost(prompt, completion + more) >= cost);
        }
    }
}
