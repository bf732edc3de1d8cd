import './styles/index.css';
import { render } from 'preact';
import { App, askEarly } from './app';
import { startLanguage } from './i18n';
import { startLive } from './server/live';
import { startTheme } from './device/theme';
import { askModel, takeOver } from './takeOver';

startTheme();
askEarly();
void Promise.all([startLanguage(), askModel()]).then(() => {
  startLive();
  const root = document.getElementById('app');
  if (root) void takeOver(root, () => render(<App />, root));
});
