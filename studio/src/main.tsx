import './styles/index.css';
import { render } from 'preact';
import { App, askEarly } from './app';
import { startLanguage } from './i18n';
import { startLive } from './server/live';
import { startTheme } from './device/theme';

startTheme();
askEarly();
void startLanguage().then(() => {
  startLive();
  const root = document.getElementById('app');
  if (root) render(<App />, root);
});
