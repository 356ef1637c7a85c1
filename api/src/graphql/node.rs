//! Anything by its global id.

use async_graphql::{Context, ID, Interface, Object};
use botledger_domain::{BotId, ConversationId, OperatorId, SubjectId, TurnId, operator::Permission};
use uuid::Uuid;

use super::{
    AsOf, Needs, Scope,
    bot::{self, Bot},
    conversation::{self, Conversation},
    error::{ApiError, ApiResult},
    operator::{self, Operator},
    person::{self, Person},
    scalars::NodeKind,
    turn::{self, Turn},
    workspace::{self, Workspace},
};

/// Ids of one request, at most.
const MOST: usize = 100;

/// Something with a global id.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID", desc = "Kind and UUID."))]
#[expect(clippy::large_enum_variant, reason = "a node is made once and goes straight into the answer")]
pub(crate) enum Node {
    Bot(Bot),
    Turn(Turn),
    Conversation(Conversation),
    Person(Person),
    Operator(Operator),
    Workspace(Workspace),
}

#[derive(Default)]
pub(crate) struct NodeQuery;

async fn find(scope: &Scope<'_>, id: &ID) -> ApiResult<Option<Node>> {
    let Some((kind, uuid)) = NodeKind::split(id) else {
        return Err(ApiError::bad_input("this is no global id; it looks like bot:0190…"));
    };
    let may = |permission| scope.identity().map(|identity| identity.role.may(permission));
    Ok(match kind {
        NodeKind::Bot => bot::find(scope, BotId(uuid)).await?.map(Node::Bot),
        NodeKind::Turn => turn::find(scope, TurnId(uuid)).await?.map(Node::Turn),
        NodeKind::Conversation => {
            conversation::find(scope, ConversationId(uuid)).await?.map(Node::Conversation)
        }
        NodeKind::Person => person::find(scope, SubjectId(uuid)).await?.map(Node::Person),
        NodeKind::Operator if may(Permission::ReadLedger)? => {
            operator::find(scope, OperatorId(uuid)).await?.map(Node::Operator)
        }
        NodeKind::Workspace => own(scope, uuid).await?.map(Node::Workspace),
        NodeKind::Operator | NodeKind::Quota | NodeKind::Budget | NodeKind::Standing | NodeKind::Case => None,
    })
}

async fn own(scope: &Scope<'_>, id: Uuid) -> ApiResult<Option<Workspace>> {
    Ok(workspace::own(scope).await?.filter(|workspace| workspace.0.workspace == id))
}

#[Object]
impl NodeQuery {
    /// Anything by its global id; null when it does not exist for the caller. Quotas and standings are
    /// asked for by person, budgets by their holder, cases by `moderationCase`. With `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "5 + child_complexity")]
    async fn node(&self, ctx: &Context<'_>, id: ID, as_of: Option<AsOf>) -> ApiResult<Option<Node>> {
        find(&Scope::then(ctx, as_of).await?, &id).await
    }

    /// The same for many, at most 100, in the order asked for.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "ids.len() * (5 + child_complexity + if as_of.is_some() { 50 } else { 0 })"
    )]
    async fn nodes(
        &self,
        ctx: &Context<'_>,
        ids: Vec<ID>,
        as_of: Option<AsOf>,
    ) -> ApiResult<Vec<Option<Node>>> {
        let scope = Scope::then(ctx, as_of).await?;
        if ids.len() > MOST {
            return Err(ApiError::bad_input(format!("at most {MOST} ids at once")));
        }
        let mut nodes = Vec::with_capacity(ids.len());
        for id in &ids {
            nodes.push(find(&scope, id).await?);
        }
        Ok(nodes)
    }
}
