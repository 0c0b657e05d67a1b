"use strict";
// The scoreboard: filters, sorting, and an address that remembers both.
(() => {
  const table = document.getElementById("scores");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, index) => ({
    row, index, ...row.dataset,
    verdicts: row.dataset.verdicts.split(" "),
    text: [row.dataset.title, row.dataset.slug, row.dataset.family, row.dataset.year].join(" ").toLowerCase(),
  }));
  const chips = [...document.querySelectorAll(".chip")];
  const headings = [...table.querySelectorAll("th[data-key]")];
  const $ = (id) => document.getElementById(id);
  const [text, family, fidelity, sort] = ["filter-text", "filter-family", "filter-fidelity", "sort"].map($);
  const numeric = new Set(["year", "claims", "seconds"]);
  const fidelities = ["exact", "gpu", "reduced", "mechanism"];
  let order = { key: "", down: false };

  const compare = (a, b) => {
    const { key, down } = order;
    if (!key) return a.index - b.index;
    let gap;
    if (numeric.has(key)) gap = Number(a[key]) - Number(b[key]);
    else if (key === "fidelity") gap = fidelities.indexOf(a[key]) - fidelities.indexOf(b[key]);
    else gap = a[key].localeCompare(b[key], "en", { sensitivity: "base" });
    return (down ? -gap : gap) || a.index - b.index;
  };

  const state = () => ({
    q: text.value.trim(),
    family: family.value,
    fidelity: fidelity.value,
    verdict: chips.filter((c) => c.getAttribute("aria-pressed") === "true").map((c) => c.dataset.verdict),
  });

  function show() {
    const { q, family: inFamily, fidelity: ofFidelity, verdict } = state();
    const wanted = q.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const r of rows) {
      const fits = wanted.every((w) => r.text.includes(w)) && (!inFamily || r.family === inFamily) &&
        (!ofFidelity || r.fidelity === ofFidelity) && (!verdict.length || verdict.some((v) => r.verdicts.includes(v)));
      r.row.hidden = !fits;
      count += fits;
    }
    body.append(...[...rows].sort(compare).map((r) => r.row));
    for (const h of headings) {
      const active = h.dataset.key === order.key;
      h.setAttribute("aria-sort", active ? (order.down ? "descending" : "ascending") : "none");
    }
    sort.value = order.key;
    const filtered = Boolean(q || inFamily || ofFidelity || verdict.length);
    $("shown").textContent = filtered ? `${count} of ${rows.length} papers` : `${rows.length} papers`;
    $("empty").hidden = count > 0;
    $("reset").hidden = !filtered;
  }

  function remember() {
    const { q, family: f, fidelity: d, verdict } = state();
    const parts = new URLSearchParams();
    if (q) parts.set("q", q);
    if (f) parts.set("family", f);
    if (d) parts.set("fidelity", d);
    if (verdict.length) parts.set("verdict", verdict.join("."));
    if (order.key) parts.set("sort", order.key + (order.down ? ".down" : ""));
    const address = String(parts);
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const choose = (select, value) => { select.value = [...select.options].some((o) => o.value === value) ? value : ""; };
    text.value = parts.get("q") || "";
    choose(family, parts.get("family") || "");
    choose(fidelity, parts.get("fidelity") || "");
    const verdict = (parts.get("verdict") || "").split(".");
    for (const c of chips) c.setAttribute("aria-pressed", String(verdict.includes(c.dataset.verdict)));
    const [key, down] = (parts.get("sort") || "").split(".");
    order = { key: headings.some((h) => h.dataset.key === key) ? key : "", down: down === "down" };
    show();
  }

  const change = () => { show(); remember(); };
  const first = (key) => numeric.has(key); // numbers are read from the largest down
  text.addEventListener("input", change);
  family.addEventListener("change", change);
  fidelity.addEventListener("change", change);
  sort.addEventListener("change", () => { order = { key: sort.value, down: first(sort.value) }; change(); });
  for (const c of chips) c.addEventListener("click", () => {
    c.setAttribute("aria-pressed", String(c.getAttribute("aria-pressed") !== "true"));
    change();
  });
  for (const h of headings) h.firstElementChild.addEventListener("click", () => {
    const key = h.dataset.key;
    if (order.key !== key) order = { key, down: first(key) };
    else if (order.down === first(key)) order.down = !order.down;
    else order = { key: "", down: false };
    change();
  });
  const reset = () => {
    text.value = family.value = fidelity.value = "";
    for (const c of chips) c.setAttribute("aria-pressed", "false");
    change();
    text.focus();
  };
  $("reset").addEventListener("click", reset);
  $("reset-empty").addEventListener("click", reset);
  table.closest("section").querySelector("form").addEventListener("submit", (e) => e.preventDefault());
  window.addEventListener("hashchange", recall);
  recall();
})();
