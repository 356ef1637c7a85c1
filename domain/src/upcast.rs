//! Bringing stored payloads to the newest version of their event.
//!
//! An upcaster works on raw JSON, by event type and stored version. A stored version without a path is an
//! error, never a guess. What a version only added has a default in the type and needs no upcaster.
//!
//! Second versions so far: what a plan grants became a list of limits, and with it what a quota counts
//! became a list of meters and amounts of several units, where there was one number of tokens.

use serde::de::{DeserializeOwned, Error};
use serde_json::{Map, Value, json};

/// Decodes a stored payload to the domain type, straight from text where the version is the newest.
///
/// # Errors
/// When the version has no path to the present one, or the payload does not fit.
pub fn decode<E: DeserializeOwned>(
    event_type: &str,
    version: &str,
    payload: &str,
) -> Result<E, serde_json::Error> {
    match (version, second(event_type)) {
        ("1.0", Some(second)) => {
            let mut fields: Map<String, Value> = serde_json::from_str(payload)?;
            second(&mut fields)?;
            serde_json::from_value(Value::Object(fields))
        }
        ("1.0" | "1.1", None) | ("2.0", Some(_)) => serde_json::from_str(payload),
        (other, _) => Err(serde_json::Error::custom(format!("no upcaster from {event_type} {other}"))),
    }
}

type Upcaster = fn(&mut Map<String, Value>) -> Result<(), serde_json::Error>;

/// What makes the second version of an event's first.
fn second(event_type: &str) -> Option<Upcaster> {
    Some(match event_type {
        "plan_defined" => limits_of_plan,
        "plan_assigned" => plan_assigned,
        "period_rolled" => period_rolled,
        "tokens_reserved" => |fields| {
            fields.remove("used");
            rename(fields, "tokens", "held")?;
            amounts(fields, &["held", "reserved"])
        },
        "tokens_settled" => |fields| {
            let used = taken(fields, "used")?;
            fields.insert("used".to_owned(), json!([used]));
            amounts(fields, &["charged", "overrun", "reserved"])
        },
        "tokens_released" => |fields| {
            fields.remove("used");
            rename(fields, "tokens", "held")?;
            amounts(fields, &["held", "reserved"])
        },
        "override_granted" => |fields| {
            fields.insert("unit".to_owned(), json!("tokens"));
            rename(fields, "tokens", "amount")
        },
        _ => return None,
    })
}

fn taken(fields: &mut Map<String, Value>, name: &str) -> Result<Value, serde_json::Error> {
    fields.remove(name).ok_or_else(|| serde_json::Error::custom(format!("{name} is missing")))
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) -> Result<(), serde_json::Error> {
    let value = taken(fields, from)?;
    fields.insert(to.to_owned(), value);
    Ok(())
}

/// Numbers of tokens become amounts.
fn amounts(fields: &mut Map<String, Value>, names: &[&str]) -> Result<(), serde_json::Error> {
    for name in names {
        let tokens = taken(fields, name)?;
        fields.insert((*name).to_owned(), json!({ "tokens": tokens }));
    }
    Ok(())
}

/// `{tokens, period}` becomes one limit.
fn limits_of_plan(fields: &mut Map<String, Value>) -> Result<(), serde_json::Error> {
    let terms = taken(fields, "terms")?;
    let limit = json!({ "unit": "tokens", "period": terms["period"], "amount": terms["tokens"] });
    fields.insert("terms".to_owned(), json!({ "limits": [limit] }));
    Ok(())
}

fn meter(fields: &mut Map<String, Value>, period: &Value) -> Result<(), serde_json::Error> {
    let (window, used) = (taken(fields, "window")?, taken(fields, "used")?);
    let meter = json!({ "unit": "tokens", "period": period, "window": window, "used": used });
    fields.insert("meters".to_owned(), json!([meter]));
    Ok(())
}

fn plan_assigned(fields: &mut Map<String, Value>) -> Result<(), serde_json::Error> {
    let period = fields.get("terms").map(|terms| terms["period"].clone()).unwrap_or_default();
    meter(fields, &period)?;
    limits_of_plan(fields)
}

/// The first version did not name the period; the window's length does.
fn period_rolled(fields: &mut Map<String, Value>) -> Result<(), serde_json::Error> {
    let window: crate::account::Window =
        serde_json::from_value(fields.get("window").cloned().unwrap_or_default())?;
    let period = match (window.end - window.start).num_seconds() {
        60 => "minute",
        3_600 => "hour",
        86_400 => "day",
        604_800 => "week",
        _ => "month",
    };
    meter(fields, &json!(period))?;
    amounts(fields, &["reserved"])
}
