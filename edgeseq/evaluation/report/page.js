"use strict";
(() => {
  const AT_ONCE = 10;
  const find = (id) => document.getElementById(id);

  // The legend: a box for each series, which shows or hides it in all charts.

  for (const box of document.querySelectorAll("[data-shows]")) {
    box.hidden = false;
    box.addEventListener("input", () => {
      for (const series of document.querySelectorAll(`[data-series="${box.dataset.shows}"]`)) {
        series.style.display = box.checked ? "" : "none";
      }
    });
  }

  const list = find("sentences");
  if (!list) return;
  const records = JSON.parse(find("records").textContent);
  const items = [...list.children];

  // Browsing: what is sought, in order, a few at a time. Without this script all sentences show.

  let limit = AT_ONCE;
  const orders = {
    line: (a, b) => a.dataset.line - b.dataset.line,
    shallow: (a, b) => a.dataset.depth - b.dataset.depth || orders.line(a, b),
    deep: (a, b) => b.dataset.depth - a.dataset.depth || orders.line(a, b),
  };
  const browse = () => {
    const sought = find("find").value.trim().toLocaleLowerCase();
    const matches = items
      .filter((item) => !find("differs").checked || "differs" in item.dataset)
      .filter((item) => item.textContent.toLocaleLowerCase().includes(sought))
      .sort(orders[find("sort").value]);
    list.replaceChildren(...matches.slice(0, limit));
    const shown = Math.min(limit, matches.length);
    find("count").textContent = `${shown} of ${matches.length} sentences`;
    find("more").hidden = shown === matches.length;
  };
  const start = () => {
    limit = AT_ONCE;
    browse();
  };
  for (const id of ["find", "sort", "differs"]) find(id).addEventListener("input", start);
  find("numbers").addEventListener("input", () => list.classList.toggle("numbers", find("numbers").checked));
  find("more").addEventListener("click", () => {
    const next = limit;
    limit += AT_ONCE;
    browse();
    list.children[next].querySelector(".token").focus();
  });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").hidden = false;
  start();

  // What the exits said: a table beside the token that is pointed at or has the focus.

  const tip = find("tip");
  let token = null;
  let leaving = 0;
  const cell = (tag, text, scope) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };
  const percent = (value) => (value === undefined ? "" : `${(value / 10).toFixed(1)} %`);
  const fill = () => {
    const row = token.closest("[data-row]");
    const place = [...row.querySelectorAll(".token")].indexOf(token);
    const [tokens, ofSentence] = records[row.dataset.row];
    const [said, confidence, ofToken] = tokens[place];
    const signals = { ...ofToken, ...ofSentence };
    const names = Object.keys(signals);
    const blocks = document.querySelectorAll(".depths")[0].children.length;
    const table = document.createElement("table");
    table.append(cell("caption", `“${token.textContent}” stopped after block ${said.length}`));
    const head = table.createTHead().insertRow();
    for (const name of ["block", "exit says", "confidence", ...names]) head.append(cell("th", name, "col"));
    const body = table.createTBody();
    for (let block = 1; block <= blocks; block++) {
      const line = body.insertRow();
      line.className = block === said.length ? "stop" : block > said.length ? "idle" : "";
      line.append(cell("th", block, "row"));
      line.append(cell("td", block > said.length ? "not run" : said[block - 1]));
      line.append(cell("td", percent(confidence[block - 1])));
      for (const name of names) line.append(cell("td", percent(signals[name][block - 1])));
    }
    tip.replaceChildren(table);
  };
  const show = (target) => {
    clearTimeout(leaving);
    if (token === target) return;
    if (token) token.removeAttribute("aria-describedby");
    token = target;
    fill();
    tip.hidden = false;
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
    const below = box.bottom + tip.offsetHeight + 16 < window.innerHeight || box.top < tip.offsetHeight + 8;
    tip.style.top = `${window.scrollY + (below ? box.bottom + 14 : box.top - tip.offsetHeight - 4)}px`;
    token.setAttribute("aria-describedby", "tip");
  };
  const hide = () => {
    clearTimeout(leaving);
    if (token) token.removeAttribute("aria-describedby");
    token = null;
    tip.hidden = true;
  };
  const hideSoon = () => {
    clearTimeout(leaving);
    leaving = setTimeout(hide, 200); // time to reach the table with the pointer
  };
  list.addEventListener("pointerover", (event) => {
    const target = event.target.closest(".token");
    if (target) show(target);
    else if (token) hideSoon();
  });
  list.addEventListener("pointerleave", hideSoon);
  tip.addEventListener("pointerenter", () => clearTimeout(leaving));
  tip.addEventListener("pointerleave", hideSoon);
  list.addEventListener("focusin", (event) => event.target.matches(".token") && show(event.target));
  list.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  list.addEventListener("keydown", (event) => {
    if (!event.target.matches(".token")) return;
    const tokens = [...event.target.closest(".tokens").querySelectorAll(".token")];
    const place = tokens.indexOf(event.target);
    const steps = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tokens.length - 1 };
    const next = tokens[steps[event.key]];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
})();
