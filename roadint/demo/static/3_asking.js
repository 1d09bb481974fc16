// Asking, answers as they grow, stopping. One question of a page runs at a time.

function ask(columns) {
  if (!columns.length) return;
  const question = prompt.value;
  const sampled = Number($('temperature').value) > 0;
  const key = JSON.stringify([question, columns.map(expressionOf)]);
  if (sampled && key === S.lastKey) $('seed').value = Number($('seed').value) + 1;
  S.lastKey = key;
  S.asked = question;
  S.foot = '';
  S.waiting.clear();
  S.flight = { id: ++S.flights, columns: [...columns] };
  for (const column of columns) Object.assign(column, { answer: '', language: null, state: 'waiting', trouble: '' });
  if (columns.some((column) => column.id === S.inspected)) closeInside();
  alertOf('');
  send('compare', [
    question, columns.map(expressionOf), $('length').valueAsNumber, $('temperature').valueAsNumber,
    $('seed').valueAsNumber, S.flight.id,
  ]);
  draw();
}

// The columns that have changed, and those that were being answered.
function askAgain() {
  const columns = S.columns.filter((column) => S.waiting.has(column) || isBusy(column));
  if (S.flight) stop();
  if (prompt.value === S.asked) ask(columns);
  else ask(S.columns);
}

function stop() {
  if (!S.flight) return;
  $('ri-do-stop').click();
  for (const column of S.flight.columns) column.state = 'stopped';
  S.flight = null;
  draw();
}

function answered(message) {
  if (!S.flight || message.flight !== S.flight.id) return; // of a question that was stopped
  if (message.error) {
    alertOf(message.error);
    for (const column of S.flight.columns) column.state = '';
    S.flight = null;
    return draw();
  }
  const state = message.waiting ? `${message.waiting} before you` : 'writing';
  S.flight.columns.forEach((column, index) => {
    column.answer = message.texts[index];
    column.answered = message.names[index];
    column.state = message.done ? '' : state;
    column.language = message.languages ? message.languages[index] : null;
    if (column.text === null) return;
    column.text = message.names[index];
  });
  S.foot = message.tokens
    ? `${message.tokens} tokens ${message.done ? 'in all' : 'so far'}, ${message.seconds.toFixed(1)} s, `
      + `${(message.tokens / message.seconds).toFixed(1)} tokens a second, one batch`
    : '';
  if (message.done) {
    S.tokens = message.tokens;
    S.seconds = message.seconds;
    S.flight = null;
    remember();
  }
  draw();
}

function draw() {
  const running = S.flight !== null;
  $('stop').hidden = !running;
  $('compare').hidden = running;
  $('compare').disabled = !S.ready;
  $('foot').textContent = S.foot;
  drawColumns();
}

function alertOf(text) {
  $('alert').hidden = !text;
  $('alert').textContent = text;
}
