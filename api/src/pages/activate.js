"use strict";
// The secret stands behind `#`, so it never reaches a server's log.
const form = document.getElementById("form");
const problem = document.getElementById("problem");
const secret = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
if (!secret) {
  problem.textContent = "The link is not whole: what stands behind # is missing.";
  form.hidden = true;
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  problem.textContent = "";
  const query =
    "mutation($input: SessionActivateInput!) { sessionActivate(input: $input) {" +
    " session { accessToken login role } userErrors { message } } }";
  const input = { secret, password: document.getElementById("password").value };
  try {
    const response = await fetch("/graphql", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ query, variables: { input } }),
    });
    const answer = await response.json();
    const payload = answer.data?.sessionActivate;
    const refusal = payload?.userErrors?.[0]?.message ?? answer.errors?.[0]?.message ?? answer.detail;
    if (!payload?.session) throw new Error(refusal ?? "no answer that can be read");
    document.getElementById("login").textContent = payload.session.login;
    document.getElementById("role").textContent = payload.session.role;
    document.getElementById("token").value = payload.session.accessToken;
    document.getElementById("done").hidden = false;
    form.hidden = true;
  } catch (error) {
    problem.textContent = error.message;
  }
});
