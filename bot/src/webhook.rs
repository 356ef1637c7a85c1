use std::sync::Arc;

use botledger_commands::{Caller, CommandError, Fence};
use botledger_domain::{
    BotId,
    bot::{BotStatus, UpdateMode},
};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use crate::{
    fleet::{Deps, Fleet},
    intake::{MOST_WAITING, hand_over, take_in},
    update::{Viewer, read_update},
};

/// What a webhook call is answered with. Anything but 200 makes Telegram call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookAnswer {
    /// HTTP status.
    pub status: u16,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
}

const STORED: WebhookAnswer = WebhookAnswer { status: 200, retry_after: None };
/// The same for an unknown bot and a wrong secret: nobody learns which bots there are.
const REFUSED: WebhookAnswer = WebhookAnswer { status: 404, retry_after: None };
const LATER: WebhookAnswer = WebhookAnswer { status: 503, retry_after: Some(2) };

/// Takes webhook calls of all bots, also of those that another process holds.
#[derive(Clone)]
pub struct Webhooks {
    deps: Arc<Deps>,
    fleet: Fleet,
}

impl Webhooks {
    pub(crate) fn new(deps: Arc<Deps>, fleet: Fleet) -> Self {
        Self { deps, fleet }
    }

    /// One call: `secret` is the header `X-Telegram-Bot-Api-Secret-Token`, `body` one update. Answers
    /// 200 only when the update is durable.
    pub async fn receive(&self, bot: &str, secret: Option<&str>, body: &[u8]) -> WebhookAnswer {
        let Ok(bot) = BotId::parse(bot) else { return REFUSED };
        match self.store(bot, secret.unwrap_or_default(), body).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(bot.id = %bot, error = %error, "an update could not be stored and will come again");
                LATER
            }
        }
    }

    async fn store(
        &self,
        id: BotId,
        secret: &str,
        body: &[u8],
    ) -> Result<WebhookAnswer, Box<dyn std::error::Error + Send + Sync>> {
        let caller = Caller::system("webhook", self.deps.app.core.ids.next());
        let bot = match self.deps.app.bots.get(&caller, id).await {
            Ok(bot) => bot,
            Err(CommandError::NotFound { .. }) => return Ok(REFUSED),
            Err(error) => return Err(error.into()),
        };
        let expected = self.deps.app.bots.webhook_secret(id).await?;
        if !bool::from(expected.as_bytes().ct_eq(secret.as_bytes())) {
            return Ok(REFUSED);
        }
        if bot.mode != UpdateMode::Webhook || bot.status != BotStatus::Running || bot.holder.is_none() {
            return Ok(LATER);
        }
        let fence = Fence { epoch: bot.lease_epoch };
        let held = self.fleet.held(id).filter(|held| held.fence == fence);
        let crowded = match &held {
            Some(held) => held.dispatcher.waiting() > MOST_WAITING,
            None => self.deps.queue(id).is_crowded().await,
        };
        if crowded {
            return Ok(LATER);
        }
        let text = String::from_utf8_lossy(body).into_owned();
        // What is no JSON is kept as a JSON text, so that nothing that came with the right secret is lost.
        let raw = match RawValue::from_string(text) {
            Ok(raw) => raw,
            Err(_) => serde_json::value::to_raw_value(&String::from_utf8_lossy(body))?,
        };
        let viewer = Viewer {
            telegram_id: bot.telegram_id.unwrap_or_default(),
            username: bot.username.as_ref().map_or_else(String::new, |name| name.as_str().to_owned()),
        };
        let update = read_update(&raw, &viewer);
        match held {
            Some(held) => take_in(&held, vec![update]).await?,
            None => hand_over(&self.deps, id, fence, update).await?,
        }
        Ok(STORED)
    }
}
